"""What the model had said of a cell when its label was submitted."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_studio import LabelStudioClient

# Label Studio's export names tasks in its address, which some proxies cut off above 4 kB.
MOST_IN_ADDRESS = 200


@dataclass(frozen=True, slots=True)
class PriorPrediction:
    """The prediction that Label Studio kept with an annotation.

    Attributes:
        task_data: of the task.
        version: model version of the prediction.
        predicted: most probable class.
        probability: of that class.
    """

    task_data: Mapping[str, Any]
    version: str
    predicted: str
    probability: float


class PriorPredictions:
    """The prior predictions of all projects; safe to share between threads.

    Label Studio tells them in an export only, and keeps a file of each export for good. They never
    change, so each annotation is asked for once.

    Args:
        client: of Label Studio.
    """

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client
        self._known: dict[tuple[int, str], dict[int, PriorPrediction | None]] = {}
        self._asking = threading.Lock()

    def of(
        self, project_id: int, tasks: Iterable[Mapping[str, Any]], *, from_name: str
    ) -> Mapping[int, PriorPrediction | None]:
        """The prior prediction by annotation id; None where there was none.

        Args:
            project_id: of the tasks.
            tasks: annotated, with `id` and `annotations`.
            from_name: the control tag whose class was predicted.
        """
        with self._asking:
            known = self._known.setdefault((project_id, from_name), {})
            new = {
                task["id"]: ids for task in tasks if (ids := _annotation_ids(task) - known.keys())
            }
            if new:
                only = list(new) if len(new) <= MOST_IN_ADDRESS else ()
                for task in self._client.exported_tasks(project_id, task_ids=only):
                    known |= prior_predictions(task, from_name=from_name)
                for annotation_id in set[int]().union(*new.values()) - known.keys():
                    known[annotation_id] = None  # deleted meanwhile
            return known


def prior_predictions(
    task: Mapping[str, Any], *, from_name: str
) -> dict[int, PriorPrediction | None]:
    """The prior predictions of one task of an export, by annotation id."""
    return {
        int(annotation["id"]): _prior_prediction(
            annotation.get("prediction") or {}, task["data"], from_name
        )
        for annotation in task["annotations"]
    }


def _prior_prediction(
    prediction: Mapping[str, Any], task_data: Mapping[str, Any], from_name: str
) -> PriorPrediction | None:
    regions: Sequence[Mapping[str, Any]] = prediction.get("result") or ()
    for region in regions:
        if region.get("from_name") == from_name:
            stored = (region.get("meta") or {}).get("probabilities") or {}
            if stored:
                predicted = max(stored, key=lambda name: float(stored[name]))
                version = str(prediction.get("model_version") or "")
                return PriorPrediction(task_data, version, predicted, float(stored[predicted]))
    return None


def _annotation_ids(task: Mapping[str, Any]) -> set[int]:
    return {int(annotation["id"]) for annotation in task["annotations"]}
