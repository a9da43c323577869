"""Labels into a copy of a hostile file, as `cellai export` writes them."""

import resource
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from converters.crops import Crop, ReadOptions
from converters.errors import CellAIError
from converters.export import ExportSource, export_labels
from converters.exported_cells import ExportTask
from converters.labels import ChosenLabel
from converters.layouts import recognise
from converters.reading import iter_crops
from converters.source import Hdf5Source, fingerprint

CLASSES = ("rbc", "a class of another name")
MAX_CELLS = 20
# A copy holds what the file holds and some labels; one that grows beyond this ends the process.
MAX_FILE_BYTES = 2**30

Place = tuple[str, int, tuple[int, int, int, int]]


def export(path: Path, options: ReadOptions) -> str:
    """Exports labels of some of the file's cells; what came of it in a word.

    Raises:
        AssertionError: an export that failed left something, or one that did not wrote nothing.
    """
    out_dir = path.parent / "exported"
    shutil.rmtree(out_dir, ignore_errors=True)  # of a case that killed its process
    _limit_files()
    places = _places(path, options)
    source = ExportSource(path, fingerprint(path), options)
    tasks = [_task(number, path.name, place) for number, place in enumerate(places)]
    refused = None
    try:
        report = export_labels(
            tasks, {path.name: source}, out_dir=out_dir, project="hostile", classes=CLASSES
        )
    except CellAIError as error:
        refused = error
    if refused is not None:
        assert not out_dir.exists(), f"{refused} left {list(out_dir.rglob('*'))}"
        return type(refused).__name__
    written = sorted(file.name for file in out_dir.rglob("*"))
    assert written == sorted({"labels.csv", *(copy.name for copy in report.copies.values())})
    shutil.rmtree(out_dir)
    return "exported"


def beside_cells(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The same file with all that it holds in a group, and beside that cells to be labelled.

    The reader refuses most files made to harm because of their images; a copy has all the rest,
    too.
    """

    def write_both(folder: Path) -> Path:
        path = write(folder)
        with h5py.File(path, "r+") as file:
            members = list(file)
            group = file.create_group("elsewhere")
            for name in members:
                if isinstance(name, str):
                    group.move(f"/{name}", name)
            file["phase/images"] = np.arange(3 * 20 * 20, dtype=np.float32).reshape(3, 20, 20) % 7
            file["label/ground_truth"] = np.array([b"rbc", b"", b""])
        return path

    return write_both


def _places(path: Path, options: ReadOptions) -> list[Place]:
    """Cells as an import finds them; without any, what somebody might claim to be one."""
    try:
        crops = islice(iter_crops([path], options=options), MAX_CELLS)
        places = [_place(crop) for crop in crops]
    except CellAIError:
        places = []
    return places or [(dataset, 0, (0, 0, 4, 4)) for dataset in _stacks(path, options)]


def _place(crop: Crop) -> Place:
    return crop.dataset, crop.index, crop.bbox


def _stacks(path: Path, options: ReadOptions) -> list[str]:
    try:
        with Hdf5Source(path) as source:
            stacks = recognise(source, options.layout).stacks()
            return [columns.dataset for columns in islice(stacks, MAX_CELLS)]
    except CellAIError:
        return ["phase/images", "images"]


def _task(number: int, source: str, place: Place) -> ExportTask:
    dataset, index, bbox = place
    label = ChosenLabel(
        label=CLASSES[number % len(CLASSES)],
        annotator="a@b.c",
        labelled_at=datetime(2026, 1, 1, tzinfo=UTC),
        model_version="",
        is_ground_truth=False,
        annotation_id=number,
        n_annotations=1,
        n_agreeing=1,
    )
    return ExportTask(number, source, dataset, index, bbox, f"crop{number}", "", label)


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
