"""Metrics are valid exposition text and say what the job store and the registry hold."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from backend.jobs import JobStore
from backend.prometheus import HELP, render_metrics
from backend.registry import Registry, Version
from backend.settings import Settings

# Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
SAMPLE = re.compile(
    r"[a-zA-Z_:][a-zA-Z0-9_:]*"
    r'(?:\{[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*")*\})?'
    r" -?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    files_dir = tmp_path / 'a "quoted"\\folder'
    files_dir.mkdir()
    return Settings(
        label_studio_api_key=SecretStr("secret"), data_dir=tmp_path, files_dir=files_dir
    )


@pytest.fixture
def store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    """Project 7 after a job of three stages and one that failed."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    store = JobStore(settings.data_dir / "jobs.sqlite")
    store.set_up(7, extra_params="")
    project = store.project(7)
    assert project is not None
    failed = store.begin(project)
    store.fail(failed, project, error="boom")
    done = store.begin(project)
    for stage, seconds in (
        ("reading labels", 1.0),
        ("computing features 0/300", 2.5),
        ("computing features 64/300", 4.0),
        ("training on 12 labels", 0.5),
    ):
        store.progress(done, stage)
        clock[0] += seconds
    store.finish(done, project, changed=True)
    store.counted(7, n_tasks=300, n_labels=12)
    store.serve(7, "cellai-0001")
    return store


@pytest.fixture
def registry(settings: Settings) -> Registry:
    registry = Registry(settings.data_dir / "models")
    registry.publish(
        Version(
            version="cellai-0001",
            project_id=7,
            classes=("a", "b"),
            n_labels=11,
            labels_digest="d",
            trunk_id="t",
            parameters={},
            created_at=(datetime.now(UTC) - timedelta(hours=2)).isoformat(),
            metrics={"macro_f1": 0.75},
        ),
        None,
    )
    return registry


@pytest.fixture
def lines(settings: Settings, store: JobStore, registry: Registry) -> list[str]:
    return render_metrics(settings, store, registry).splitlines()


def values(lines: list[str]) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_every_line_follows_the_format(lines: list[str]) -> None:
    samples = [line for line in lines if not line.startswith("#")]
    assert len(samples) > len(HELP)
    assert [line for line in samples if not SAMPLE.fullmatch(line)] == []


def test_every_metric_is_described_before_its_samples(lines: list[str]) -> None:
    described: list[str] = []
    for line in lines:
        if line.startswith("# TYPE"):
            described.append(line.split()[2])
        elif not line.startswith("#"):
            assert re.split(r"[{ ]", line)[0] == described[-1]
    assert described == list(HELP)


def test_values(lines: list[str]) -> None:
    found = values(lines)
    assert found['cellai_jobs{project="7",state="done"}'] == 1
    assert found['cellai_jobs{project="7",state="failed"}'] == 1
    assert found['cellai_pool_tasks{project="7"}'] == 300
    assert found['cellai_labels{project="7"}'] == 12
    assert found['cellai_learned_labels{project="7",version="cellai-0001"}'] == 11
    assert found['cellai_macro_f1{project="7",version="cellai-0001"}'] == 0.75
    assert found['cellai_versions{project="7"}'] == 1
    assert found['cellai_waiting{project="7"}'] == 0
    assert found["cellai_runner_up"] == 0
    age = found['cellai_serving_version_age_seconds{project="7",version="cellai-0001"}']
    assert 7200 <= age < 7300


def test_stages_of_one_kind_are_added_up(lines: list[str]) -> None:
    found = values(lines)
    seconds = {
        stage: found[f'cellai_stage_seconds{{project="7",stage="{stage}"}}']
        for stage in ("reading", "computing", "training")
    }
    assert seconds == {"reading": 1.0, "computing": 6.5, "training": 0.5}


def test_label_values_are_escaped(lines: list[str]) -> None:
    (line,) = [line for line in lines if "quoted" in line]
    assert r"a \"quoted\"\\folder" in line
