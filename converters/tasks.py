"""A crop to a Label Studio task: its data, the pictures it names, and its annotation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from converters.crops import Crop
from converters.images import UInt8Array
from converters.label_config import LabelConfig
from converters.rendering import RENDERING, model_input, render_amplitude, render_phase

LOCAL_FILES_URL = "/data/local-files/?d="
PICTURE_KINDS = ("phase", "amplitude", "image", "model_input")


@dataclass(frozen=True, slots=True)
class TaskPaths:
    """Where the files of a project's tasks lie below the document root of local files."""

    project_id: int

    @property
    def folder(self) -> PurePosixPath:
        """The project's folder, the one its Label Studio storage serves."""
        return PurePosixPath(f"project-{self.project_id}")

    def picture(self, crop_id: str, kind: str) -> PurePosixPath:
        """One picture; spread over 256 folders, since one with 100,000 files is slow to list."""
        return self.folder / "crops" / crop_id[:2] / f"{crop_id}-{kind}.png"

    def card(self, crop_id: str) -> PurePosixPath:
        """The card, rewritten in place by the backend."""
        return self.folder / "cards" / crop_id[:2] / f"{crop_id}.html"

    def local_files(self, crop_id: str, task_data: Mapping[str, Any]) -> list[PurePosixPath]:
        """Those of the crop's files that its task names and Label Studio serves from a folder."""
        files = {kind: self.picture(crop_id, kind) for kind in PICTURE_KINDS}
        files["card"] = self.card(crop_id)
        return [path for key, path in files.items() if task_data.get(key) == local_files_url(path)]


def local_files_url(path: PurePosixPath) -> str:
    """URL under which Label Studio serves a file below the document root."""
    return LOCAL_FILES_URL + quote(path.as_posix())


def pictures(crop: Crop) -> Iterator[tuple[str, UInt8Array]]:
    """The pictures of a crop: those for people, and for phase images the model's own.

    Yields:
        (task key, pixels) with pixels (S, S) or (S, S, 3) uint8.
    """
    if crop.phase is not None:
        yield "phase", render_phase(crop.phase)
    if crop.amplitude is not None:
        yield "amplitude", render_amplitude(crop.amplitude)
    if crop.image is not None:
        yield "image", crop.image
    if crop.phase is not None or crop.amplitude is not None:
        yield "model_input", model_input(crop)


def task_data(
    crop: Crop,
    paths: TaskPaths,
    kinds: set[str],
    *,
    picture_url: Callable[[PurePosixPath], str] = local_files_url,
) -> dict[str, Any]:
    """The task's data; every key is always there, '' where the source lacks the thing.

    Args:
        crop: the cell.
        paths: of its project.
        kinds: task keys of the pictures it has.
        picture_url: address of a picture, by its path.
    """
    addresses = {
        kind: picture_url(paths.picture(crop.crop_id, kind)) if kind in kinds else ""
        for kind in PICTURE_KINDS
    }
    return {
        **addresses,
        "card": local_files_url(paths.card(crop.crop_id)),
        "source": crop.source,
        "dataset": crop.dataset,
        "index": crop.index,
        "group": crop.group,
        "bbox": list(crop.bbox),
        "area_px": crop.area_px,
        "flags": ", ".join(crop.flags),  # a list would be shown with its brackets
        "crop_id": crop.crop_id,
        "rendering": RENDERING,
    }


def annotation(label: str, label_config: LabelConfig) -> dict[str, Any]:
    """A label that came with the source, as a ground-truth annotation."""
    choice = {
        "from_name": label_config.from_name,
        "to_name": label_config.to_name,
        "type": "choices",
        "value": {"choices": [label]},
    }
    return {"result": [choice], "ground_truth": True, "was_cancelled": False}
