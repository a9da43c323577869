"""Simulations that are done, so that a benchmark that was interrupted goes on where it was.

One is done again as soon as the code that decides it, the features or torch are others.
"""

import ast
import hashlib
import inspect
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from backend import acquisition, adamw, head, metrics, precision, thinning, training, uncertainty
from benchmarks import learning
from benchmarks.labelled_features import LabelledFeatures
from benchmarks.learning import Run

_DECIDE = (
    acquisition,
    adamw,
    head,
    learning,
    metrics,
    precision,
    thinning,
    training,
    uncertainty,
)


class _Line(BaseModel):
    key: str
    run: Run


class FinishedRuns:
    """Runs by key, in a file of JSON lines to which each is added as soon as it is done.

    A line that cannot be read, such as one that was cut off, is as if it were not there.

    Args:
        path: the file; created with the first run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, Run] = {}
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    line = _Line.model_validate_json(text)
                except ValidationError:
                    continue
                self._runs[line.key] = line.run

    def get(self, key: str) -> Run | None:
        """The run that has been done under this key, if any."""
        return self._runs.get(key)

    def add(self, key: str, run: Run) -> None:
        """Keep a run."""
        self._runs[key] = run
        with self._path.open("a") as file:  # the line before may have been cut off
            file.write("\n" + _Line(key=key, run=run).model_dump_json())


def code_digest() -> str:
    """Of all that decides a simulation but its data, as hex digits; comments do not."""
    digest = hashlib.sha256(torch.__version__.encode())
    for module in _DECIDE:
        digest.update(ast.dump(ast.parse(inspect.getsource(module))).encode())
    return digest.hexdigest()


def features_digest(data: LabelledFeatures) -> str:
    """Of what a simulation sees of a data set, as hex digits."""
    digest = hashlib.sha256(repr((data.name, data.classes, data.groups.tolist())).encode())
    for array in (data.features, data.turned_features, data.labels):
        digest.update(array.tobytes())
    return digest.hexdigest()
