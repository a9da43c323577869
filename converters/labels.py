"""The one rule that turns the annotations of a task into its label.

In: annotations as Label Studio's API and JSON export give them. Out: the label with who,
when and the model version the annotator was shown. The export and the training set both read
labels here, so that the file and the model never disagree. Label Studio is not called.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Annotation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChosenLabel:
    """The label of a task and the annotation it comes from.

    Attributes:
        label: the choice's value, a class of the labelling config.
        annotation_id: the latest annotation with that label; 0 where Label Studio gave none.
        annotator: e-mail address of its author, else the user's id as text, else ''.
        labelled_at: when that annotation was last changed, UTC; None where unknown.
        is_ground_truth: a ground-truth annotation decided.
        model_version: of the prediction the annotator was shown; '' without one.
        n_annotations: annotations of the task that carry a label, all authors.
        n_agreeing: those among them that carry this label.
    """

    label: str
    annotation_id: int
    annotator: str
    labelled_at: datetime | None
    is_ground_truth: bool
    model_version: str
    n_annotations: int
    n_agreeing: int


@dataclass(frozen=True, slots=True)
class _Vote:
    label: str
    annotation: Annotation

    @property
    def is_ground_truth(self) -> bool:
        return bool(self.annotation.get("ground_truth"))

    @property
    def annotation_id(self) -> int:
        return int(self.annotation.get("id") or 0)

    @property
    def recency(self) -> tuple[datetime, int]:
        changed_at = _changed_at(self.annotation) or datetime.min.replace(tzinfo=UTC)
        return changed_at, self.annotation_id


def chosen_label(annotations: Iterable[Annotation], *, from_name: str) -> ChosenLabel | None:
    """Label of a task: ground truth wins, then the majority, ties go to the latest.

    Skipped annotations (`was_cancelled`) and those without exactly one choice of the control
    tag do not count. Where several ground-truth annotations disagree, the majority among
    them decides, then the latest.

    Args:
        annotations: of one task, with `result`, `was_cancelled`, `ground_truth`,
            `updated_at`, `completed_by`, `id` and `prediction` as Label Studio names them.
        from_name: name of the `Choices` tag to read; results of other tags are ignored.

    Returns:
        The label, or None when no annotation carries one.
    """
    votes = [
        _Vote(label, annotation)
        for annotation in annotations
        if (label := annotation_label(annotation, from_name=from_name)) is not None
    ]
    if not votes:
        return None
    deciding = [vote for vote in votes if vote.is_ground_truth] or votes
    counts = Counter(vote.label for vote in deciding)
    winner = max(deciding, key=lambda vote: (counts[vote.label], vote.recency))
    return ChosenLabel(
        label=winner.label,
        annotation_id=winner.annotation_id,
        annotator=_annotator(winner.annotation),
        labelled_at=_changed_at(winner.annotation),
        is_ground_truth=winner.is_ground_truth,
        model_version=_shown_model_version(winner.annotation),
        n_annotations=len(votes),
        n_agreeing=sum(vote.label == winner.label for vote in votes),
    )


def annotation_label(annotation: Annotation, *, from_name: str) -> str | None:
    """Label that one annotation gives, None when it was skipped or has not exactly one."""
    if annotation.get("was_cancelled"):
        return None
    choices = [
        choice
        for region in annotation.get("result") or ()
        if region.get("from_name") == from_name and region.get("type") == "choices"
        for choice in (region.get("value") or {}).get("choices") or ()
    ]
    return choices[0] if len(choices) == 1 and isinstance(choices[0], str) else None


def _changed_at(annotation: Annotation) -> datetime | None:
    """Time of the last change, in UTC (Label Studio writes ISO 8601, the SDK parses it)."""
    stamp = annotation.get("updated_at") or annotation.get("created_at")
    if isinstance(stamp, str):
        try:
            stamp = datetime.fromisoformat(stamp)
        except ValueError:
            return None
    if not isinstance(stamp, datetime):
        return None
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)


def _annotator(annotation: Annotation) -> str:
    """E-mail address of the author (JSON export) or the user's id as text (API)."""
    author = annotation.get("completed_by")
    if isinstance(author, Mapping):
        author = author.get("email") or author.get("id")
    return "" if author is None else str(author)


def _shown_model_version(annotation: Annotation) -> str:
    """Version of the prediction from which the annotation was made; '' when blind."""
    prediction = annotation.get("prediction")
    version = prediction.get("model_version") if isinstance(prediction, Mapping) else None
    return version if isinstance(version, str) else ""
