"""Rescoring a pool as a share of what a real Label Studio needs to import the result."""

import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from backend.features import Trunk
from backend.label_studio import LabelStudioClient
from backend.prediction import prediction
from benchmarks.timing import seconds_in_turn
from benchmarks.versions import rescoring
from converters.label_config import TEMPLATE_PATH, read_label_config
from converters.label_studio import Connection
from converters.launcher import LABEL_STUDIO_ENVIRONMENT, answers, label_studio_command
from converters.processes import Children
from converters.project import create_project

N_CROPS = 10_000
START_DEADLINE_S = 300


def import_numbers(trunk: Trunk) -> Iterator[tuple[str, float]]:
    """Rescoring and the import of as many predictions, in turn, by name.

    Raises:
        TimeoutError: Label Studio did not start.
    """
    with rescoring(trunk, n_crops=N_CROPS) as rescore_pool, _importing(N_CROPS) as import_them:
        rescore_s, import_s = seconds_in_turn(rescore_pool, import_them, repetitions=3)
    yield "rescore_s_10k", rescore_s
    yield "rescore_crops_s_10k", N_CROPS / rescore_s
    yield "import_s_10k", import_s
    yield "rescore_10k_share_of_import", rescore_s / import_s


@contextmanager
def _importing(n_predictions: int) -> Iterator[Callable[[], None]]:
    """A task: import so many predictions into as many tasks, SQLite.

    Each has a class and its probabilities, as the product's have; which, makes no difference here.
    """
    with _label_studio() as (url, api_key):
        connection = Connection(url, api_key)
        xml = TEMPLATE_PATH.read_text()
        config = read_label_config(xml)
        project_id = create_project(connection, title="benchmark", label_config=xml)
        empty = dict.fromkeys(config.data_keys, "")
        answer = connection.post(
            f"api/projects/{project_id}/import",
            [{"data": empty}] * n_predictions,
            return_task_ids=True,
        )
        connection.close()
        drawn = np.random.default_rng(0).dirichlet(np.ones(len(config.classes)), n_predictions)
        rows = [
            prediction(task_id, config, row, score=float(row.max()), model_version="cellai-0001")
            for task_id, row in zip(answer["task_ids"], drawn.astype(np.float32), strict=True)
        ]
        client = LabelStudioClient(url, api_key)
        yield lambda: client.import_predictions(project_id, rows)


@contextmanager
def _label_studio() -> Iterator[tuple[str, str]]:
    """A fresh Label Studio in a temporary folder; gives its address and a token."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    api_key = secrets.token_hex(20)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        children = Children(Path(folder))
        children.start(
            "label-studio",
            label_studio_command(port),
            LABEL_STUDIO_ENVIRONMENT
            | {
                "LABEL_STUDIO_BASE_DATA_DIR": folder,
                "LABEL_STUDIO_USERNAME": "benchmark@localhost.local",
                "LABEL_STUDIO_PASSWORD": secrets.token_urlsafe(12),
                "LABEL_STUDIO_USER_TOKEN": api_key,
            },
        )
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not answers(f"{url}/health"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"Label Studio did not start within {START_DEADLINE_S} s")
                time.sleep(0.5)
            yield url, api_key
        finally:
            children.stop()
