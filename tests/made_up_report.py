"""A whole report in which every free text is one name."""

from datetime import UTC, datetime

from backend.advice import Advice
from backend.gallery import GalleryCell
from backend.jobs import Job
from backend.report import (
    CurvePoint,
    HoldOut,
    Pace,
    PoolHistogram,
    Progress,
    Report,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def report_of(name: str = "Platelet") -> Report:
    """A whole report in which every free text is `name`."""
    job = Job(
        id=1,
        project_id=3,
        state="failed",
        stage=name,
        started_at=NOON.timestamp(),
        finished_at=NOON.timestamp() + 2.5,
        model_version=name,
        n_labels=4,
        error=name,
        progressed_at=None,
        stage_seconds={},
    )
    hold_out = HoldOut(
        version=name,
        titles=(name, "B"),
        n_holdout=8,
        macro_f1=0.7,
        macro_f1_se=0.05,
        confusion=((3, 1), (2, 2)),
        precision=(0.6, None),
        recall=(0.75, 0.5),
        f1=(0.67, 0.57),
        ece=0.1,
        brier=0.3,
        reliability=((8.0, 0.9, 0.625),),
    )
    cell = GalleryCell(
        7, "data:image/png;base64,AAAA", "", name, 0.93, name, uncertainty=0.4, label=name
    )
    return Report(
        project_id=3,
        title=name,
        written_at=NOON,
        serving_version=name,
        n_tasks=9,
        n_labels=4,
        titles=(name, "B"),
        label_counts=(3, 1),
        drawn_per_epoch=(32.0, 32.0),
        curve=(CurvePoint(name, NOON.isoformat(), 4, 8, 0.7, 0.05, True),),
        hold_out=hold_out,
        pool_before=PoolHistogram(name, 2, (0, 5)),
        pool_now=PoolHistogram(name, 4, (5, 0)),
        pace=Pace(((NOON, 4),), 120.0),
        uncertain=(cell,),
        contradicted=(cell,),
        progress=Progress((job,), is_waiting=True, new_labels=2),
        advice=Advice("continue", f"Look for {name}.", ()),
        gain=None,
    )
