"""Looks at the queue all the time, as annotators would, and notes when it is not whole."""

import sqlite3
import threading
from contextlib import closing

import psycopg
from own_label_studio import OwnLabelStudio

INTERVAL_S = 0.2

# The version by which the queue is sorted, tasks that it lacks, and tasks that it has twice. Tasks
# imported after the version was made are its successor's. All in one statement: one moment.
LOOK = """
WITH serving AS (
    SELECT prediction.task_id FROM prediction JOIN project ON project.id = {project}
    JOIN task ON task.id = prediction.task_id AND task.project_id = project.id
    WHERE prediction.model_version = project.model_version)
SELECT model_version,
    (SELECT count(*) FROM task WHERE project_id = {project}
        AND id <= coalesce((SELECT max(task_id) FROM serving), id)
        AND id NOT IN (SELECT task_id FROM serving)),
    (SELECT count(*) - count(DISTINCT task_id) FROM serving)
FROM project WHERE id = {project}
"""


class QueueWatch:
    """Reads Label Studio's database, which answers even while the server is dead.

    Args:
        label_studio: whose database is read.
        project_id: whose queue is watched.
    """

    def __init__(self, label_studio: OwnLabelStudio, project_id: int) -> None:
        self._label_studio = label_studio
        self._look_at_project = LOOK.format(project=project_id)
        self._over = threading.Event()
        self._looks = 0
        self._broken: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Look from now on; before the first version the queue is in no order."""
        self._thread.start()

    def take(self) -> int:
        """Number of looks since the last call; fails without any, or if the queue was not whole."""
        looks, self._looks = self._looks, 0
        broken, self._broken = self._broken, []
        assert looks, "the database never answered"
        assert not broken, f"the queue was not whole in {len(broken)} of {looks} looks: {broken[0]}"
        return looks

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            try:
                self._look()
            except (sqlite3.OperationalError, psycopg.OperationalError):
                continue  # Label Studio writes, or something was killed and has not cleared up yet

    def _look(self) -> None:
        with closing(self._label_studio.connect_database()) as connection:
            row = connection.execute(self._look_at_project).fetchone()
        if row is None or not row[0]:
            return  # deleted, or nothing was ever sorted
        self._looks += 1
        version, n_lacking, n_doubled = row
        if n_lacking or n_doubled:
            self._broken.append(f"{version} lacks {n_lacking} tasks and doubles {n_doubled}")
