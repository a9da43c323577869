"""Labels back into copies of the files they belong to, and into one CSV table.

In: the tasks of a project and where its sources lie. Out, in one folder: a copy of every HDF5
source with the labels in its own label column and in the table `cellai/cells`, and `labels.csv`
with all labels. The sources are only read. Everything is written to a hidden folder, read back
and compared, and only then moved to its name. Label Studio is not called.
"""

import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.crops import ReadOptions, is_frame
from converters.dataset_checks import image_size
from converters.durable import sync
from converters.errors import ExportError, OutputError, SourceChangedError
from converters.exported_cells import CSV_NAME, TEXT, ExportTask, cells_table, same_cells, write_csv
from converters.hdf5_copy import check_unchanged, copy_hdf5, opened_copy
from converters.label_writing import WrittenLabels, check_labels, keep_old, write_labels
from converters.layouts import Layout, recognise
from converters.object_values import check_object_values
from converters.source import Hdf5Source, fingerprint
from converters.structure import check_structure

CELLS = "cellai/cells"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A source as it was imported.

    Attributes:
        path: where it lies.
        sha256: its `converters.source.fingerprint` at the time of the import.
        read: how it was read.
    """

    path: Path
    sha256: str
    read: ReadOptions = field(default_factory=ReadOptions)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        csv: the table of all labels.
        copies: the HDF5 copies by name of the source.
        n_labels: labels in the table.
        csv_only: number of labels by source that is no HDF5 file of this import.
    """

    csv: Path
    copies: dict[str, Path]
    n_labels: int
    csv_only: dict[str, int]


def export_labels(
    tasks: Iterable[ExportTask],
    sources: Mapping[str, ExportSource],
    *,
    out_dir: Path,
    project: str,
    classes: Sequence[str],
) -> ExportReport:
    """Writes all labels of a project to copies of its sources and to a CSV table.

    An export of the same labels that is already there is left as it is; another one is never
    overwritten.

    Args:
        tasks: all tasks of the project; those without label count the cells of an image.
        sources: the project's sources by the name its tasks carry.
        out_dir: folder for the results; made when missing.
        project: what to record as the origin of the labels, such as its title and id.
        classes: class ids of the project.

    Raises:
        SourceChangedError: a source is no longer the file that was imported.
        OutputError: `out_dir` cannot be written, has too little space, or holds other results.
        ExportError: a task names a place that its source does not have.
        SourceError: a source cannot be read any more.
    """
    tasks = list(tasks)
    labelled = [task for task in tasks if task.chosen is not None]
    files = _hdf5_files(tasks, sources)
    with _staging(out_dir) as staging:
        _check_space(staging, (file.path for file in files.values()))
        targets = _targets(files, out_dir)
        results = {CSV_NAME: write_csv(labelled, staging / CSV_NAME)}
        for name, file in files.items():
            of_file = [task for task in tasks if task.source == name and task.dataset]
            staged = staging / targets[name]
            staged.parent.mkdir(parents=True, exist_ok=True)
            _export_file(name, file, staged, tasks=of_file, project=project, classes=classes)
            results[targets[name].as_posix()] = staged
        _publish(results, out_dir)
    csv_only = Counter(
        task.source for task in labelled if task.source not in files or not task.dataset
    )
    return ExportReport(
        csv=out_dir / CSV_NAME,
        copies={name: out_dir / target for name, target in targets.items()},
        n_labels=len(labelled),
        csv_only=dict(csv_only),
    )


# --- which files -------------------------------------------------------------------------------


def _hdf5_files(
    tasks: Sequence[ExportTask], sources: Mapping[str, ExportSource]
) -> dict[str, ExportSource]:
    """The HDF5 files with labels, by the name their tasks carry; files in folders included."""
    names = {task.source for task in tasks if task.dataset and task.chosen is not None}
    found = {name: _locate(name, sources) for name in sorted(names)}
    return {name: file for name, file in found.items() if file is not None}


def _locate(name: str, sources: Mapping[str, ExportSource]) -> ExportSource | None:
    """The file that tasks call `name`: a source, or `folder/file` in a folder that is one."""
    if name in sources and not sources[name].path.is_dir():
        _check_fingerprint(name, sources[name])
        return sources[name]
    for folder_name, folder in sources.items():
        if not PurePosixPath(name).is_relative_to(folder_name):
            continue
        path = folder.path / PurePosixPath(name).relative_to(folder_name)
        # A task's data can be edited, so its name must not lead out of the folder.
        if path.is_file() and path.resolve().is_relative_to(folder.path.resolve()):
            _check_fingerprint(folder_name, folder)
            return replace(folder, path=path, sha256=fingerprint(path))
    return None


def _check_fingerprint(name: str, source: ExportSource) -> None:
    if not source.path.exists():
        raise SourceChangedError(
            f"{name} was imported from {source.path}, where it no longer is.",
            hint="Put it back there and export again.",
        )
    if fingerprint(source.path) != source.sha256:
        raise SourceChangedError(
            f"{source.path} has changed since its import, so the labels may not fit its cells.",
            hint="Put the imported file back, or import the changed one into a new project.",
        )


def _targets(files: Mapping[str, ExportSource], out_dir: Path) -> dict[str, PurePosixPath]:
    """Name of each copy below the folder; never that of the source itself."""
    targets = {}
    for name, file in files.items():
        target = PurePosixPath(
            *(part for part in PurePosixPath(name).parts if part not in ("/", ".."))
        )
        if (out_dir / target).resolve() == file.path.resolve():
            target = target.with_stem(f"{target.stem}-labelled")
        targets[name] = target
    return targets


# --- one HDF5 file -----------------------------------------------------------------------------


def _export_file(
    name: str,
    file: ExportSource,
    staged: Path,
    *,
    tasks: Sequence[ExportTask],
    project: str,
    classes: Sequence[str],
) -> None:
    """Writes and verifies one copy."""
    check_structure(file.path, name=name, outside_links=file.read.outside_links)
    with Hdf5Source(file.path, name=name, outside_links=file.read.outside_links) as source:
        layout = recognise(source, file.read.layout)
        _check_places(source, layout, tasks)
        check_object_values(source, outside_links=file.read.outside_links)
        cells = cells_table([task for task in tasks if task.chosen is not None])
        copy_hdf5(source, staged, spare_bytes=_spare_bytes(layout, len(cells), classes=classes))
        attributes = _provenance(name, file, tasks, project=project)
        with opened_copy(source, staged, "r+") as copy:
            written = write_labels(
                source,
                copy,
                layout=layout,
                labels=_column_labels(layout, tasks, read=file.read),
                classes=classes,
            )
            moved = _write_table(copy, cells, attributes)
            for stack in written:
                _describe(copy, stack, attributes)
                moved |= stack.kept
        _verify(source, staged, written=written, cells=cells, moved=moved)


def _spare_bytes(layout: Layout, n_cells: int, *, classes: Sequence[str]) -> int:
    """More than the labels take: some kB per cell and a score or a long name per image."""
    n_rows = sum(columns.count for columns in layout.stacks())
    return 2**20 + 2048 * n_cells + n_rows * (256 + 8 * len(classes))


def _check_places(source: Hdf5Source, layout: Layout, tasks: Iterable[ExportTask]) -> None:
    counts = {columns.dataset: columns.count for columns in layout.stacks()}
    for task in tasks:
        if not 0 <= task.index < counts.get(task.dataset, 0):
            raise ExportError(
                f"Task {task.task_id} belongs to image {task.index} of '{task.dataset}', "
                f"which {source.name} does not have.",
                hint="Its data was edited in Label Studio: delete the task and import again.",
            )


def _column_labels(
    layout: Layout, tasks: Iterable[ExportTask], *, read: ReadOptions
) -> dict[str, dict[int, str]]:
    """Labels of images that hold one cell, by dataset and row.

    A label column says what an image shows, so an image with several cells has no place in it.
    Of an import with a limit nobody knows how many cells a frame holds.
    """
    cells_of: defaultdict[tuple[str, int], list[ExportTask]] = defaultdict(list)
    for task in tasks:
        cells_of[task.dataset, task.index].append(task)
    sizes_px = {columns.dataset: image_size(columns.first) for columns in layout.stacks()}
    labels: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for (dataset, index), cells in cells_of.items():
        chosen = cells[0].chosen if len(cells) == 1 else None
        is_countable = read.limit is None or not is_frame(sizes_px[dataset], read)
        if chosen is not None and is_countable:
            labels[dataset][index] = chosen.label
    return labels


def _provenance(
    name: str, file: ExportSource, tasks: Iterable[ExportTask], *, project: str
) -> dict[str, Any]:
    """Who, when, which model, which tool: attributes of everything that is written."""
    chosen = [task.chosen for task in tasks if task.chosen is not None]
    times = sorted(label.labelled_at.isoformat() for label in chosen if label.labelled_at)
    versions = sorted({label.model_version for label in chosen} - {""})
    return {
        "format": FORMAT,
        "tool": f"cellai {version('cellai')}",
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "project": project,
        "source": name,
        "source_sha256": file.sha256,
        "annotators": np.array(sorted({label.annotator for label in chosen}), dtype=TEXT),
        "labelled_from": times[0] if times else "",
        "labelled_until": times[-1] if times else "",
        "model_versions": np.array(versions, dtype=TEXT),
    }


def _write_table(
    copy: h5py.File, cells: NDArray[np.void], attributes: dict[str, Any]
) -> dict[str, str]:
    """Writes the table of the labels; returns where that of an earlier export was moved to."""
    moved = {CELLS: keep_old(copy, CELLS)} if CELLS in copy else {}
    copy.create_dataset(CELLS, data=cells).attrs.update(attributes)
    return moved


def _describe(copy: h5py.File, written: WrittenLabels, attributes: dict[str, Any]) -> None:
    for path in written.columns:
        copy[path].attrs.update(attributes)
        if path in written.class_of:
            copy[path].attrs["class"] = written.class_of[path]


def _verify(
    source: Hdf5Source,
    staged: Path,
    *,
    written: Sequence[WrittenLabels],
    cells: NDArray[np.void],
    moved: Mapping[str, str],
) -> None:
    with opened_copy(source, staged, "r") as copy:
        for stack in written:
            check_labels(copy, stack)
        if not same_cells(copy[CELLS][()], cells):
            raise OutputError(
                f"The table of labels for {source.name} was not written right.",
                hint="Nothing was written. Check the disk, then export again.",
            )
        check_unchanged(source, copy, moved=moved)


# --- the folder --------------------------------------------------------------------------------


@contextmanager
def _staging(out_dir: Path) -> Iterator[Path]:
    """A hidden folder in `out_dir`, gone in the end; trouble with the disk becomes one sentence."""
    was_there = out_dir.exists()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out_dir))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if not was_there and not any(out_dir.iterdir()):
                out_dir.rmdir()
    except OSError as error:
        raise OutputError(
            f"The export cannot be written to {out_dir} ({error.strerror or error}).",
            hint="Choose a folder that you may write on a disk with enough space. Nothing is left.",
        ) from error


def _check_space(folder: Path, sources: Iterable[Path]) -> None:
    needed = sum(path.stat().st_size for path in sources)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"The copies need {needed / 1e6:,.0f} MB, but {folder.parent} has only "
            f"{free / 1e6:,.0f} MB free.",
            hint="Choose a folder on another disk with --out.",
        )


def _publish(results: Mapping[str, Path], out_dir: Path) -> None:
    """Moves the results to their names, once none of them would replace something else."""
    new = {name: path for name, path in results.items() if not (out_dir / name).exists()}
    different = [
        name
        for name, path in results.items()
        if name not in new and not _same(path, out_dir / name)
    ]
    if different:
        raise OutputError(
            f"{out_dir} already holds another {' and another '.join(different)}.",
            hint="Choose a new folder with --out, or remove the old export.",
        )
    for name, path in new.items():
        sync(path)
        (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(out_dir / name)
        sync((out_dir / name).parent)


def _same(staged: Path, existing: Path) -> bool:
    """Whether an existing result says the same as the new one."""
    if staged.name == CSV_NAME:
        return staged.read_bytes() == existing.read_bytes()
    try:
        with h5py.File(staged, "r") as new, h5py.File(existing, "r") as old:
            origins = [file[CELLS].attrs["source_sha256"] for file in (new, old)]
            same_cells = new[CELLS][()].tolist() == old[CELLS][()].tolist()
            return bool(origins[0] == origins[1] and same_cells)
    except (OSError, KeyError):
        return False
