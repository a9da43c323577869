"""A version and a Label Studio in memory, for tests of what lies between them."""

from collections.abc import Sequence
from typing import Any

from backend.label_studio import LabelStudioClient
from backend.registry import Version


def version(number: int, **changes: Any) -> Version:
    """Version of that number and as many labels."""
    settings: dict[str, Any] = {
        "version": f"cellai-{number:04d}",
        "project_id": 3,
        "classes": ("a", "b"),
        "n_labels": number,
        "labels_digest": "d",
        "trunk_id": "t",
        "parameters": {"mode": "auto"},
        "created_at": f"2026-01-01T00:00:{number:02d}+00:00",
        "metrics": {"macro_f1": 0.5},
    }
    return Version(**settings | changes)


class PredictionsInMemory(LabelStudioClient):
    """A project's predictions. The real server keeps them in tests/test_queue.py."""

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__("http://label-studio", "token")
        self.rows = list(rows)
        self.serving = ""

    def model_versions(self, project_id: int) -> dict[str, int]:
        names = [row["model_version"] for row in self.rows]
        return {name: names.count(name) for name in names}

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        return list(self.rows)

    def import_predictions(self, project_id: int, predictions: Any) -> None:
        first = 1 + max((row["id"] for row in self.rows), default=0)
        self.rows += [row | {"id": first + at} for at, row in enumerate(predictions)]

    def delete_prediction(self, prediction_id: int) -> None:
        self.rows = [row for row in self.rows if row["id"] != prediction_id]

    def set_model_version(self, project_id: int, version: str) -> None:
        self.serving = version
