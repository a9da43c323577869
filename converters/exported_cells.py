"""Tasks of Label Studio's export into labelled cells, and these into the rows of the tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import ExportError
from converters.label_studio import Connection
from converters.labels import ChosenLabel, chosen_label
from converters.project import project_label_config

CSV_NAME = "labels.csv"
TEXT = h5py.string_dtype()

_CELL_FIELDS = np.dtype(
    [
        ("dataset", TEXT),
        ("index", np.int64),
        ("x", np.int64),
        ("y", np.int64),
        ("width", np.int64),
        ("height", np.int64),
        ("crop_id", TEXT),
        ("group", TEXT),
        ("label", TEXT),
        ("annotator", TEXT),
        ("labelled_at", TEXT),
        ("model_version", TEXT),
        ("ground_truth", np.bool_),
        ("n_annotations", np.int64),
        ("n_agreeing", np.int64),
        ("task_id", np.int64),
        ("annotation_id", np.int64),
    ]
)


@dataclass(frozen=True, slots=True)
class ExportTask:
    """One task: where its cell is, and its label if it has one.

    Attributes:
        task_id: Label Studio's id.
        source: name of the source, '' for a task that no import of ours made.
        dataset: path of the image dataset, '' for a picture.
        index: of the image in it.
        bbox: x, y, width, height in px in the image.
        crop_id: of the cell.
        group: field of view.
        chosen: the label; None while unlabelled.
    """

    task_id: int
    source: str
    dataset: str
    index: int
    bbox: tuple[int, int, int, int]
    crop_id: str
    group: str
    chosen: ChosenLabel | None


def export_task(
    task: Mapping[str, Any], *, from_name: str, annotators: Mapping[str, str] | None = None
) -> ExportTask:
    """A task of Label Studio's JSON export, with the label the rule chooses.

    Args:
        task: `id`, `data` as the import wrote it, and `annotations`.
        from_name: name of the `Choices` tag to read.
        annotators: e-mail address by user id, for exports that only give ids.

    Raises:
        ExportError: the task's data was changed to something that is no place in a source.
    """
    data, chosen = task["data"], chosen_label(task.get("annotations") or (), from_name=from_name)
    if chosen is not None and annotators:
        chosen = replace(chosen, annotator=annotators.get(chosen.annotator, chosen.annotator))
    try:
        x, y, width, height = (int(side) for side in data.get("bbox") or (0, 0, 0, 0))
        index = int(data.get("index") or 0)
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"Task {task['id']} has index {data.get('index')!r} and bbox {data.get('bbox')!r}, "
            "which are no place in an image.",
            hint="Its data was edited in Label Studio: delete the task and import again.",
        ) from error
    return ExportTask(
        task_id=int(task["id"]),
        source=str(data.get("source", "")),
        dataset=str(data.get("dataset", "")),
        index=index,
        bbox=(x, y, width, height),
        crop_id=str(data.get("crop_id", "")),
        group=str(data.get("group", "")),
        chosen=chosen,
    )


def export_tasks(connection: Connection, project_id: int) -> list[ExportTask]:
    """All tasks of a project with the label that the rule chooses."""
    from_name = project_label_config(connection, project_id).from_name
    annotators = {str(user["id"]): str(user["email"]) for user in connection.get("api/users/")}
    rows = connection.get(
        f"api/projects/{project_id}/export", exportType="JSON", download_all_tasks=True
    )
    return [export_task(row, from_name=from_name, annotators=annotators) for row in rows]


def cells_table(tasks: Sequence[ExportTask]) -> NDArray[np.void]:
    """The labels of one file as the rows of its table, ordered by place.

    Args:
        tasks: with labels.

    Returns:
        Compound array of shape (len(tasks),).
    """
    ordered = sorted(tasks, key=lambda task: (task.dataset, task.index, task.bbox, task.task_id))
    rows = (_row(task) for task in ordered)
    return np.array(
        [tuple(row[name] for name in _CELL_FIELDS.names or ()) for row in rows], dtype=_CELL_FIELDS
    )


def _row(task: ExportTask) -> dict[str, Any]:
    chosen = task.chosen
    if chosen is None:
        raise ValueError(f"task {task.task_id} has no label")
    x, y, width, height = task.bbox
    return {
        "source": task.source,
        "dataset": task.dataset,
        "index": task.index,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "crop_id": task.crop_id,
        "group": task.group,
        "label": chosen.label,
        "annotator": chosen.annotator,
        "labelled_at": chosen.labelled_at.isoformat() if chosen.labelled_at else "",
        "model_version": chosen.model_version,
        "ground_truth": chosen.is_ground_truth,
        "n_annotations": chosen.n_annotations,
        "n_agreeing": chosen.n_agreeing,
        "task_id": task.task_id,
        "annotation_id": chosen.annotation_id,
    }


def same_cells(stored: NDArray[np.void], expected: NDArray[np.void]) -> bool:
    """Whether a table that was read back says what `cells_table` made; bytes count as text."""

    def as_text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    return bool([tuple(map(as_text, row)) for row in stored.tolist()] == expected.tolist())


def write_csv(tasks: Sequence[ExportTask], path: Path) -> Path:
    """Writes all labels, ordered by source and place; the same labels give the same bytes.

    Args:
        tasks: with labels.
        path: the file to write, as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written.
    """
    ordered = sorted(
        tasks, key=lambda task: (task.source, task.dataset, task.index, task.bbox, task.task_id)
    )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["source", *(_CELL_FIELDS.names or ())], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(task) for task in ordered)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path
