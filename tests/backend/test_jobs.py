"""Marks coalesce, survive, and become due by the rules; failures are tried again."""

import time
from pathlib import Path

import pytest

from backend.jobs import RETRY_SECONDS, JobStore, Project


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite")


def only(store: JobStore) -> Project:
    (project,) = store.projects()
    return project


def is_due(store: JobStore, *, after_s: float = 0.0) -> bool:
    return only(store).is_due(time.time() + after_s, quiet_seconds=10, max_new_labels=20)


def handled(store: JobStore) -> None:
    project = only(store)
    store.finish(store.begin(project), project, changed=True)


def test_new_project_is_due_at_once(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    assert is_due(store)
    handled(store)
    assert not is_due(store, after_s=1000)


def test_setting_up_again_changes_nothing_but_new_parameters_do(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.set_up(7, extra_params="")
    assert not is_due(store, after_s=1000)
    store.set_up(7, extra_params='{"epochs": 3}')
    assert is_due(store)


def test_burst_waits_for_quiet_or_twenty_labels(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    for _ in range(19):
        store.mark(7, new_labels=1)
    assert not is_due(store, after_s=5)
    assert is_due(store, after_s=11)
    store.mark(7, new_labels=1)
    assert is_due(store)


def test_large_project_is_retrained_less_often(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.counted(7, n_tasks=15_000, n_labels=0)
    for _ in range(29):
        store.mark(7, new_labels=1)
    assert not is_due(store, after_s=5)
    store.mark(7, new_labels=1)
    assert is_due(store)


def test_demand_is_due_at_once_and_only_once(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.mark(7, demanded=True)
    assert is_due(store)
    assert only(store).demanded
    handled(store)
    assert not only(store).demanded


def test_demand_outlives_a_failure_and_a_crash(store: JobStore, tmp_path: Path) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.mark(7, demanded=True)
    project = only(store)
    store.fail(store.begin(project), project, error="why")
    assert only(store).demanded
    store.begin(only(store))
    reopened = JobStore(tmp_path / "jobs.sqlite")
    reopened.interrupt_running()
    assert only(reopened).demanded
    handled(reopened)
    assert not only(reopened).demanded


def test_demand_during_a_job_stays(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    store.mark(7, demanded=True)
    project = only(store)
    job = store.begin(project)
    store.mark(7, demanded=True)
    store.finish(job, project, changed=True)
    assert only(store).demanded


def test_mark_during_a_job_stays(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    project = only(store)
    job = store.begin(project)
    store.mark(7, new_labels=1)
    store.finish(job, project, changed=True)
    assert is_due(store, after_s=11)


def test_unknown_project_is_ignored(store: JobStore) -> None:
    assert not store.mark(8, new_labels=1)
    assert store.projects() == []


def test_failed_job_is_tried_again_later(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    project = only(store)
    store.fail(store.begin(project), project, error="why")
    assert not is_due(store)
    assert is_due(store, after_s=16)
    assert store.jobs(7)[0].error == "why"


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_clock_that_jumps_delays_nothing(store: JobStore, jump_s: float) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.mark(7, new_labels=1)
    assert not is_due(store)
    assert is_due(store, after_s=jump_s)
    project = only(store)
    store.fail(store.begin(project), project, error="why")
    assert not is_due(store)
    assert is_due(store, after_s=jump_s)


def test_interrupted_job_runs_again_after_a_crash(store: JobStore, tmp_path: Path) -> None:
    store.set_up(7, extra_params="")
    store.begin(only(store))
    reopened = JobStore(tmp_path / "jobs.sqlite")
    reopened.interrupt_running()
    assert is_due(reopened)
    assert reopened.jobs(7)[0].state == "interrupted"


def test_job_without_change_leaves_no_row(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    project = only(store)
    store.finish(store.begin(project), project, changed=False)
    assert store.jobs(7) == []
    assert not is_due(store, after_s=1000)


def test_check_after_a_failure_says_that_it_is_over(store: JobStore) -> None:
    store.set_up(7, extra_params="")
    project = only(store)
    store.fail(store.begin(project), project, error="why")
    store.finish(store.begin(project), project, changed=False)
    assert [job.state for job in store.jobs(7)] == ["done", "failed"]
    store.finish(store.begin(project), project, changed=False)
    assert [job.state for job in store.jobs(7)] == ["done", "failed"]


def test_jobs_of_a_project_that_fails_for_good_do_not_pile_up(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.jobs.KEPT_JOBS", 3)
    store.set_up(7, extra_params="")
    store.set_up(8, extra_params="")
    other = next(project for project in store.projects() if project.id == 8)
    store.fail(store.begin(other), other, error="of another project")
    failing = next(project for project in store.projects() if project.id == 7)
    for number in range(10):
        store.fail(store.begin(failing), failing, error=str(number))
    assert [job.error for job in store.jobs(7)] == ["9", "8", "7"]
    assert len(store.jobs(8)) == 1


def test_failed_reconciliation_is_tried_again_like_any_job(store: JobStore) -> None:
    """It was nobody's mark that asked for it, so none would ask again."""
    store.set_up(7, extra_params="")
    handled(store)
    project = only(store)
    store.fail(store.begin(project), project, error="why")
    assert not is_due(store)
    assert is_due(store, after_s=RETRY_SECONDS + 1)
    handled(store)
    assert not is_due(store, after_s=1000)


def test_interrupted_reconciliation_is_tried_again(store: JobStore, tmp_path: Path) -> None:
    store.set_up(7, extra_params="")
    handled(store)
    store.begin(only(store))
    reopened = JobStore(tmp_path / "jobs.sqlite")
    reopened.interrupt_running()
    assert is_due(reopened)


@pytest.mark.parametrize("parameters", [["{}"], ["{}", '{"epochs": 3}']])
def test_set_up_is_an_event_of_its_time(store: JobStore, parameters: list[str]) -> None:
    """`cellai doctor` says how long changes have waited."""
    began = time.time()
    for extra_params in parameters:
        store.set_up(7, extra_params=extra_params)
        assert began <= only(store).last_event_at <= time.time()
        handled(store)
        began = time.time()
