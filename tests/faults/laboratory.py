"""A project in the laboratory of the fault tests, and what must hold in it after every fault."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import httpx
from fault_table import note_check
from installation import OwnBackend, annotate, wait_until
from own_label_studio import OwnLabelStudio
from queue_watch import QueueWatch

from backend.jobs import JobStore
from converters.backend_checks import check_backend
from converters.backend_client import BackendClient
from converters.check import Verdict
from converters.errors import CellAIError, LabelStudioError, UnreachableError
from converters.label_studio import Connection

SETTLED_DEADLINE_S = 400
PAUSE_DEADLINE_S = 300
FAULT_POINTS = Path(__file__).with_name("fault_points")
# Points of `fault_points` that the job runner comes to in a job and after it, in this order.
RUNNER_POINTS = (
    "job-begun",
    "labels-read",
    "head-fitted",
    "version-written",
    "pool-scored",
    "import-begun",
    "predictions-imported",
    "queue-switched",
    "version-served",
    "job-finished",
    "cards-begun",
    "cards-written",
)
CARD_POINTS = RUNNER_POINTS[-2:]


@dataclass
class Laboratory:
    """A project whose annotator knows the truth, and what must hold after every fault.

    Attributes:
        label_studio: the server, which faults may kill.
        backend: serves the project.
        project_id: of the project.
        truth: class of every task.
        submitted: tasks that were annotated, in order.
        watch: looks at the queue all the time.
    """

    label_studio: OwnLabelStudio
    backend: OwnBackend
    project_id: int
    truth: dict[int, str]
    submitted: list[int]
    watch: QueueWatch

    @property
    def connection(self) -> Connection:
        return self.label_studio.connection

    def annotate(self, count: int) -> None:
        """Label the next tasks as the page serves them."""
        for _ in range(count):
            task_id = self.next_task()
            annotate(self.connection, task_id, self.truth[task_id])
            self.submitted.append(task_id)

    def next_task(self) -> int:
        """The task that the page serves next. Label Studio writes it down; SQLite may be locked."""

        def served() -> int | None:
            try:
                return int(self.connection.get(f"api/projects/{self.project_id}/next")["id"])
            except UnreachableError:
                raise
            except LabelStudioError:
                return None

        return wait_until(served, deadline_s=60, what="next task")

    def annotate_at_once(self, count: int, *, annotators: int) -> None:
        """Label open tasks, shared out to annotators who do not wait for each other.

        Among them the one that was served last, which Label Studio would serve again first.
        """
        served = self.next_task()
        others = self.truth.keys() - {*self.submitted, served}
        chosen = [served, *sorted(others)][:count]

        def label(share: list[int]) -> None:
            own = Connection(self.label_studio.url, self.label_studio.api_key)
            with closing(own):
                for task_id in share:
                    annotate(own, task_id, self.truth[task_id])

        with ThreadPoolExecutor(annotators) as threads:
            list(threads.map(label, (chosen[i::annotators] for i in range(annotators))))
        self.submitted.extend(chosen)

    @contextmanager
    def paused_at(self, point: str, fault_file: Path) -> Iterator[None]:
        """The job runner stands still at a point of a job for new labels until the block ends."""
        fault_file.write_text(f"{point} pause")
        paused = Path(f"{fault_file}.paused")
        try:
            self.annotate(2)
            wait_until(paused.exists, deadline_s=PAUSE_DEADLINE_S, what=f"pause at {point}")
            yield
        finally:
            fault_file.unlink(missing_ok=True)
            paused.unlink(missing_ok=True)

    def annotate_into_a_crash(self, count: int) -> None:
        """Label until Label Studio dies; bring it back and see whether it has the last label."""
        try:
            self.annotate(count)
        except UnreachableError:
            self._after_crash()
            annotated = self.connection.get(
                f"api/projects/{self.project_id}/export", exportType="JSON"
            )
            kept = {row["id"] for row in annotated} - set(self.submitted)
            assert len(kept) <= 1
            self.submitted.extend(kept)
        else:
            self._after_crash()

    def _after_crash(self) -> None:
        self.label_studio.wait_for_death()
        self.label_studio.start()

    def project(self) -> dict[str, Any]:
        """The project as Label Studio's API gives it."""
        return dict(self.connection.get(f"api/projects/{self.project_id}/"))

    def predictions(self) -> list[dict[str, Any]]:
        """All predictions of the project."""
        return list(self.connection.get("api/predictions/", project=self.project_id))

    def predicted(self) -> set[int]:
        """The tasks that the version in service has predicted."""
        version = self.project()["model_version"]
        return {row["task"] for row in self.predictions() if row["model_version"] == version}

    def settle(self) -> str:
        """Wait until a version with every submitted label sorts the queue; its name."""
        client = BackendClient(self.backend.address)

        def settled() -> str | None:
            try:
                if not client.is_ready():
                    return None
                state = client.queue_state(self.project_id)
            except CellAIError:  # killed between the two, or a file of it is being mended
                return None
            is_done = state.is_sorted and state.n_labels == len(self.submitted)
            return state.model_version if is_done else None

        try:
            return wait_until(
                settled,
                deadline_s=SETTLED_DEADLINE_S,
                what=f"sorted queue with all {len(self.submitted)} labels",
            )
        finally:
            client.close()

    def problem(self) -> str | None:
        """What /ready and /health say is wrong, None while all is well."""
        address = self.backend.address
        ready = httpx.get(f"{address.url}/ready", auth=(address.user, address.password))
        health = httpx.get(f"{address.url}/health")
        assert health.status_code == 200
        if ready.status_code != 503 or not health.json()["problem"]:
            return None
        return str(ready.json()["state"])

    def diagnosed(self) -> list[str]:
        """The problems that `cellai doctor` finds at the backend."""
        client = BackendClient(self.backend.address)
        try:
            checks = list(check_backend(client.diagnosis()))
        finally:
            client.close()
        return [check.finding for check in checks if check.verdict is Verdict.PROBLEM]

    def check(self) -> None:
        """No label missing, no doubled prediction, and no moment with a half-sorted queue."""
        began = time.monotonic()
        version = self.settle()
        back_s = time.monotonic() - began
        scores = self.check_predictions(version)
        still_open = scores.keys() - set(self.submitted)
        assert scores[self.next_task()] == min(scores[task] for task in still_open)
        annotated = self.connection.get(f"api/projects/{self.project_id}/export", exportType="JSON")
        assert sorted(row["id"] for row in annotated) == sorted(self.submitted)
        note_check(
            n_labels=len(self.submitted),
            n_tasks=len(self.truth),
            looks=self.watch.take(),
            back_s=back_s,
        )

    def check_predictions(self, version: str) -> dict[int, float]:
        """The version sorts all tasks, and no task is predicted twice; score by task."""
        assert self.project()["model_version"] == version
        rows = self.predictions()
        pairs = [(row["task"], row["model_version"]) for row in rows]
        assert len(pairs) == len(set(pairs)), "a task has two predictions of one version"
        scores = {row["task"]: row["score"] for row in rows if row["model_version"] == version}
        assert scores.keys() == self.truth.keys()
        return scores

    def check_cards(self) -> None:
        """Once the backend has noted so, every card shows the version in service."""
        version = self.settle()
        store = JobStore(self.backend.data_dir / "jobs.sqlite")

        def are_noted() -> bool:
            project = store.project(self.project_id)
            return project is not None and project.cards_version == version

        wait_until(are_noted, deadline_s=SETTLED_DEADLINE_S, what=f"note of cards of {version}")
        assert not self.stale_cards()

    def stale_cards(self) -> list[str]:
        """Cards that do not show the version in service."""
        version = self.project()["model_version"]
        answer = self.connection.get(
            "api/tasks/", project=self.project_id, page_size=10_000, fields="task_only"
        )
        files = self.backend.files_dir
        cards = [files / task["data"]["card"].partition("?d=")[2] for task in answer["tasks"]]
        return [card.name for card in cards if f"Model {version}," not in card.read_text()]


@contextmanager
def new_laboratory(
    label_studio: OwnLabelStudio, backend: OwnBackend, source: Path
) -> Iterator[Laboratory]:
    """A new project of a labelled sample, imported without its labels; ten are given again."""
    with h5py.File(source) as file:
        labels = [label.decode() for label in file["label/ground_truth"][:]]
    project_id = backend.import_source(source)
    answer = label_studio.connection.get(
        "api/tasks/", project=project_id, page_size=10_000, fields="task_only"
    )
    truth = {task["id"]: labels[task["data"]["index"]] for task in answer["tasks"]}
    watch = QueueWatch(label_studio, project_id)
    laboratory = Laboratory(label_studio, backend, project_id, truth, [], watch)
    try:
        laboratory.settle()
        watch.start()
        laboratory.annotate(10)
        laboratory.check()
        yield laboratory
    finally:
        watch.stop()


# What a head has learned is no question here, and most of the time of a version would go into it.
FEW_EPOCHS = "5"


def fault_environment(fault_file: Path) -> dict[str, str]:
    """Lets the backend's processes fail at points, and find labels that nobody announced soon."""
    path = os.pathsep.join([str(FAULT_POINTS), os.environ.get("PYTHONPATH", "")])
    return {
        "PYTHONPATH": path.rstrip(os.pathsep),
        "FAULT_FILE": str(fault_file),
        "CELLAI_RECONCILE_SECONDS": "5",
        "CELLAI_EPOCHS": FEW_EPOCHS,
    }
