"""What Label Studio is told about the annotator's screen besides the labelling config.

Keys of the editor, and the tabs of the Data Manager (`POST /api/dm/views/`). All of it was tried
in a browser on Label Studio 1.23.2.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from converters.label_config import LabelConfig

# Value of Label Studio's environment variable EDITOR_KEYMAP: Enter alone accepts. A foreign Label
# Studio keeps Ctrl+Enter, so that works as well. Enter is taken from "focus first region".
EDITOR_KEYMAP: Final = json.dumps(
    {
        "annotation:submit": {"key": "enter,ctrl+enter", "description": "Accept and submit"},
        "region:focus": {"key": "alt+f", "description": "Focus first focusable region"},
    }
)

# Finds five in six wrong labels or more, among one to two right ones for each (docs/model.md).
DOUBTED_BELOW: Final = 0.3

# A tab for each class is of use while all of them fit on a screen.
_MOST_CLASS_TABS: Final = 8

_PICTURES: Final = ("data.phase", "data.amplitude", "data.image")
_ROW: Final = (*_PICTURES, "predictions_score", "data.index", "data.flags")
_TILE: Final = ("data.phase", "data.image")
_COLUMNS: Final = (
    *("id", "inner_id", "completed_at", "total_annotations", "cancelled_annotations"),
    *("total_predictions", "annotators", "annotations_results", "annotations_ids"),
    *("predictions_score", "predictions_model_versions", "predictions_results", "file_upload"),
    *("storage_filename", "created_at", "updated_at", "updated_by", "avg_lead_time"),
    *("draft_exists", "data.phase", "data.amplitude", "data.image", "data.model_input"),
    *("data.card", "data.source", "data.dataset", "data.index", "data.group", "data.bbox"),
    *("data.area_px", "data.flags", "data.crop_id", "data.rendering"),
)


def data_manager_tabs(label_config: LabelConfig) -> Iterator[dict[str, Any]]:
    """Tabs of a project, in order; the `data` of one `POST /api/dm/views/` each.

    The first is what the Data Manager opens on and what "Label Tasks As Displayed" and a link to
    `?labeling=1` follow: unlabelled cells, the most uncertain first.
    """
    open_cells = [_filter("total_annotations", "equal", 0)]
    open_cells.append(_filter("cancelled_annotations", "equal", 0))
    yield _tab("Uncertain first", "list", open_cells, "tasks:predictions_score")
    # The score of a labelled cell is how far its label is believed (backend.second_look).
    doubted = [_filter("total_annotations", "greater", 0)]
    doubted.append(_filter("predictions_score", "less", DOUBTED_BELOW))
    yield _tab("Second look", "list", doubted, "tasks:predictions_score")
    if len(label_config.classes) <= _MOST_CLASS_TABS:
        for class_id, title in zip(label_config.classes, label_config.titles, strict=True):
            # Results are searched as JSON text; class ids there are quoted and escaped.
            stored = _filter("annotations_results", "contains", json.dumps(class_id))
            labelled = _filter("total_annotations", "greater", 0)
            yield _tab(title, "grid", [stored, labelled], "-tasks:completed_at")
    skipped = [_filter("cancelled_annotations", "greater", 0)]
    yield _tab("Skipped", "list", skipped, "tasks:id")


def _tab(title: str, layout: str, filters: list[dict[str, Any]], order: str) -> dict[str, Any]:
    return {
        "title": title,
        "type": layout,
        "target": "tasks",
        "filters": {"conjunction": "and", "items": filters},
        "ordering": [order],
        "gridWidth": 5,
        "columnsDisplayType": {f"tasks:{column}": "Image" for column in _PICTURES},
        "hiddenColumns": {
            "explore": _all_but(_TILE if layout == "grid" else _ROW),
            "labeling": _all_but((*_TILE, "predictions_score")),
        },
    }


def _filter(column: str, operator: str, value: float | str) -> dict[str, Any]:
    kind = "String" if isinstance(value, str) else "Number"
    return {
        "filter": f"filter:tasks:{column}",
        "operator": operator,
        "type": kind,
        "value": value,
    }


def _all_but(shown: tuple[str, ...]) -> list[str]:
    return [f"tasks:{column}" for column in _COLUMNS if column not in shown]
