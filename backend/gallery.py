"""Cells that the progress report shows: those the model is unsure of, those it got wrong.

Pictures become data addresses, so that the page needs no other file.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from backend.errors import PredictionError
from backend.history import QueuedCell, VersionRecord
from backend.images import DISPLAY_KEYS, PictureReader
from backend.label_studio import Task
from backend.prior_predictions import PriorPrediction
from converters.label_config import LabelConfig
from converters.labels import annotation_label

GALLERY_CELLS = 8
PICTURE_PX = 144
# Below, a prediction that the annotator contradicts was no more than a guess.
CONFIDENT = 0.7

_CARD_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True, slots=True)
class GalleryCell:
    """One cell of a gallery; pictures are data URIs, '' where they cannot be read."""

    task_id: int
    picture: str
    heat: str
    predicted: str
    probability: float
    version: str
    uncertainty: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class ConfidentError:
    """A label that contradicts the prediction which the version then in service had made."""

    task_id: int
    label: str
    prior: PriorPrediction


class Gallery:
    """Chooses cells and reads their pictures.

    Args:
        pictures: reads them.
    """

    def __init__(self, pictures: PictureReader) -> None:
        self._pictures = pictures

    def uncertain(
        self, serving: VersionRecord | None, labels: Mapping[int, str], config: LabelConfig
    ) -> tuple[GalleryCell, ...]:
        """The head of the queue, as far as nobody has labelled it since."""
        if serving is None:
            return ()
        still_open = [cell for cell in serving.front if cell.task_id not in labels]
        return tuple(self._queued(cell, serving, config) for cell in still_open[:GALLERY_CELLS])

    def _queued(self, cell: QueuedCell, serving: VersionRecord, config: LabelConfig) -> GalleryCell:
        return GalleryCell(
            task_id=cell.task_id,
            picture=self._picture(Task(cell.task_id, {"image": cell.picture})),
            heat=self._heat(cell.card),
            predicted=title_of(cell.predicted, config),
            probability=cell.probability,
            version=serving.version,
            uncertainty=cell.uncertainty,
        )

    def contradicted(
        self,
        tasks: Iterable[Mapping[str, Any]],
        labels: Mapping[int, str],
        prior: Mapping[int, PriorPrediction | None],
        config: LabelConfig,
    ) -> tuple[GalleryCell, ...]:
        """The most confident errors."""
        found = confident_errors(tasks, labels, prior, from_name=config.from_name)
        return tuple(
            GalleryCell(
                task_id=error.task_id,
                picture=self._picture(Task(error.task_id, dict(error.prior.task_data))),
                heat=self._heat(str(error.prior.task_data.get("card") or "")),
                predicted=title_of(error.prior.predicted, config),
                probability=error.prior.probability,
                version=error.prior.version,
                label=title_of(error.label, config),
            )
            for error in found[:GALLERY_CELLS]
        )

    def _picture(self, task: Task) -> str:
        try:
            pixels = self._pictures.read(task, keys=DISPLAY_KEYS)
        except PredictionError:
            return ""
        picture = Image.fromarray(pixels)
        picture.thumbnail((PICTURE_PX, PICTURE_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

    def _heat(self, card_url: str) -> str:
        """The Grad-CAM of a card, as it stands in the shared folder."""
        try:
            path: Path | None = self._pictures.local_path(card_url)
            card = "" if path is None else path.read_text(encoding="utf-8")
        except (PredictionError, OSError, UnicodeDecodeError):
            return ""
        return card_picture(card)


def confident_errors(
    tasks: Iterable[Mapping[str, Any]],
    labels: Mapping[int, str],
    prior: Mapping[int, PriorPrediction | None],
    *,
    from_name: str,
) -> list[ConfidentError]:
    """Labels that contradict a confident prediction, the most confident first.

    Label Studio keeps with every annotation the prediction of the version in service at that
    moment, which cannot have learned from the label.

    Args:
        tasks: annotated, with `id` and `annotations`.
        labels: label by task id, as training reads them.
        prior: of `PriorPredictions`.
        from_name: the control tag of the labels.
    """
    errors = []
    for task in tasks:
        label = labels.get(int(task["id"]), "")
        given = [
            int(annotation["id"])
            for annotation in task["annotations"]
            if annotation_label(annotation, from_name=from_name) == label
        ]
        said = prior.get(given[-1]) if given else None
        if said is not None and said.predicted != label and said.probability >= CONFIDENT:
            errors.append(ConfidentError(int(task["id"]), label, said))
    return sorted(errors, key=lambda error: (-error.prior.probability, error.task_id))


def card_picture(card: str) -> str:
    """The Grad-CAM picture of a card as a data URI; '' for a placeholder."""
    found = _CARD_PICTURE.search(card)
    return found[0] if found else ""


def title_of(class_id: str, config: LabelConfig) -> str:
    """What the annotator reads for a class; the id itself for one that the config lost."""
    known = dict(zip(config.classes, config.titles, strict=True))
    return known.get(class_id, class_id)
