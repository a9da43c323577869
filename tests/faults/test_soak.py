"""Half an hour of labelling at five annotations a second, with retraining going on.

SOAK_MINUTES shortens it; what it saw is printed.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import pytest
from installation import OwnBackend, annotate, run_cellai, wait_until
from laboratory import SETTLED_DEADLINE_S, Laboratory, new_laboratory
from own_label_studio import OwnLabelStudio

from converters.backend_client import BackendClient

pytestmark = [pytest.mark.label_studio, pytest.mark.soak, pytest.mark.timeout(3600)]

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
ANNOTATIONS_PER_S = 5
ANNOTATORS = 4  # who wait for Label Studio's answer each on their own
MOST_DELAY_S = 0.1
MOST_GROWTH = 1.1


@dataclass(frozen=True)
class Usage:
    """Memory and open files of a process and all its children."""

    rss_mb: float
    n_files: int


def usage(pid: int) -> Usage:
    root = psutil.Process(pid)
    processes = [root, *root.children(recursive=True)]
    return Usage(
        sum(process.memory_info().rss for process in processes) / 1e6,
        sum(process.num_fds() for process in processes),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "soak.seg"
    assert run_cellai("sample", path, "--cells", 500, "--labelled", 1).returncode == 0
    return path


def endless_labels(laboratory: Laboratory) -> Iterator[tuple[int, str]]:
    """Every task again and again; each time another label wins, so that training goes on.

    The second annotation of a task makes a tie, which the latest wins; the third a majority.
    """
    classes = sorted(set(laboratory.truth.values()))
    while True:
        yield from laboratory.truth.items()
        for task_id, label in laboratory.truth.items():
            yield task_id, classes[classes.index(label) - 1]


def test_soak(
    label_studio: OwnLabelStudio,
    own_backend: OwnBackend,
    source: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half an hour of labelling at five annotations a second."""
    with (
        own_backend.running() as process,
        new_laboratory(label_studio, own_backend, source) as laboratory,
    ):
        connection = laboratory.connection
        alone_id = connection.post(
            "api/projects/", {"title": "no backend", "label_config": project_config(laboratory)}
        )["id"]
        alone = connection.post(
            f"api/projects/{alone_id}/import",
            [{"data": connection.get(f"api/tasks/{next(iter(laboratory.truth))}/")["data"]}] * 100,
            return_task_ids=True,
        )["task_ids"]

        seconds: dict[str, list[float]] = {"with": [], "without": []}
        seen: list[Usage] = []
        began = time.monotonic()
        with ThreadPoolExecutor(ANNOTATORS) as annotators:

            def submit(kind: str, task_id: int, label: str) -> None:
                seconds[kind].append(annotate(connection, task_id, label))

            labelled: set[int] = set()
            submits: deque[Future[None]] = deque()
            for number, (task_id, label) in enumerate(endless_labels(laboratory)):
                due = began + number / ANNOTATIONS_PER_S
                if time.monotonic() - began > 60 * MINUTES:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
                submits.append(annotators.submit(submit, "with", task_id, label))
                labelled.add(task_id)
                if number % 10 == 0:  # the same turn by turn where no backend is told
                    other = alone[number // 10 % len(alone)]
                    submits.append(annotators.submit(submit, "without", other, label))
                while len(submits) > ANNOTATORS:
                    submits.popleft().result()
                if number % (10 * ANNOTATIONS_PER_S) == 0:
                    seen.append(usage(process.pid))
        minutes = (time.monotonic() - began) / 60
        n_versions = len(connection.get(f"api/projects/{laboratory.project_id}/model-versions/"))
        laboratory.check_predictions(settle(laboratory, labelled))
        looks = laboratory.watch.take()

    delays = {name: median(values) for name, values in seconds.items()}
    warm, last = seen[len(seen) // 3], seen[-1]
    with capsys.disabled():
        print(
            f"\n{len(seconds['with'])} annotations in {minutes:.0f} min, {n_versions} versions;"
            f" median submit {delays['with']:.3f} s, {delays['without']:.3f} s without backend;"
            f" memory {warm.rss_mb:.0f} MB after a third, {last.rss_mb:.0f} MB at the end;"
            f" files {warm.n_files} and {last.n_files}; queue watched {looks} times"
        )
    assert delays["with"] - delays["without"] < MOST_DELAY_S
    assert last.rss_mb < MOST_GROWTH * max(u.rss_mb for u in seen[: len(seen) // 3 + 1])
    assert last.n_files <= max(u.n_files for u in seen[: len(seen) // 3 + 1]) + 5


def settle(laboratory: Laboratory, labelled: set[int]) -> str:
    """Wait until a version was trained on all labels; name of the one that sorts the queue.

    That may be an earlier one: of labels that contradict each other a worse version comes, which
    is not served.
    """
    client = BackendClient(laboratory.backend.address)
    n_labels = len(labelled.union(laboratory.submitted))

    def settled() -> str | None:
        state = client.queue_state(laboratory.project_id)
        project = next(p for p in client.status() if p["project_id"] == laboratory.project_id)
        has_all = project["versions"][-1]["n_labels"] == n_labels
        return state.model_version if has_all and state.is_sorted else None

    with closing(client):
        return wait_until(settled, deadline_s=SETTLED_DEADLINE_S, what=f"{n_labels} labels")


def project_config(laboratory: Laboratory) -> str:
    """The labelling config of the laboratory's project."""
    return str(laboratory.project()["label_config"])
