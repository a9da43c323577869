"""Sources into the tasks of a project: pictures on disk first, then the tasks that name them.

Streamed in batches. Which crops are in the project is asked from Label Studio itself, so an
import that was killed goes on where it was, and a second import of the same source adds nothing.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from converters.crops import Crop, ReadOptions
from converters.errors import (
    ConfigurationError,
    ImportRejectedError,
    LabelStudioError,
    OutputError,
    UnknownLabelError,
)
from converters.label_config import LabelConfig
from converters.label_studio import Connection
from converters.picture_store import PictureFolder, PictureStore
from converters.placeholder import render_placeholder, write_card
from converters.png import encode_png
from converters.problems import Problems
from converters.project import project_label_config
from converters.reading import (
    CropPlan,
    count_labels,
    iter_named_crops,
    plan_crops,
    without_cells,
)
from converters.source_record import remember_sources
from converters.tasks import TaskPaths, annotation, pictures, task_data

BATCH = 500
PAGE = 10_000


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How sources become tasks.

    Attributes:
        read: how the sources are read.
        use_labels: labels of the source become ground-truth annotations.
        skip_unknown_labels: cells whose label is no class are imported without it.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    use_labels: bool = True
    skip_unknown_labels: bool = False


@dataclass(slots=True)
class ImportReport:
    """What an import did."""

    imported: int = 0
    labelled: int = 0
    already_there: int = 0
    rewritten: int = 0  # of those, the ones whose pictures or card were gone
    skipped_labels: dict[str, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)


def plan_import(sources: Sequence[Path], options: ImportOptions) -> CropPlan:
    """What an import will bring; before anything is sent or written.

    Raises:
        EmptySourceError: it is certain that there is no cell.
        SourceError: a source cannot be used.
    """
    problems = Problems()
    plan = plan_crops(sources, options=options.read, problems=problems)
    if plan.is_empty:
        raise without_cells(sources, problems)
    return plan


def check_files_dir(files_dir: Path) -> None:
    """Make sure that pictures can be written, before there is a project for them.

    Raises:
        OutputError: they cannot.
    """
    try:
        files_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=files_dir):
            pass
    except OSError as error:
        raise _unwritable(files_dir, error) from error


def check_labels(
    sources: Sequence[Path], label_config: LabelConfig, options: ImportOptions
) -> dict[str, int]:
    """Labels of the sources that are no class, with their counts; before anything is written.

    Raises:
        UnknownLabelError: there are any and they are not to be skipped.
        SourceError: a source cannot be used.
    """
    if not options.use_labels:
        return {}
    counts = count_labels(sources, options=options.read)
    unknown = {label: n for label, n in counts.items() if label not in label_config.classes}
    if unknown and not options.skip_unknown_labels:
        listed = ", ".join(f"{label!r} ({n})" for label, n in sorted(unknown.items()))
        raise UnknownLabelError(
            f"Labels that are no class: {listed}; the classes are"
            f" {', '.join(label_config.classes)}.",
            hint="Name the classes with --classes, or leave these labels out with"
            " --skip-unknown-labels.",
        )
    return unknown


def import_sources(
    connection: Connection,
    project_id: int,
    sources: Sequence[Path],
    *,
    files_dir: Path,
    options: ImportOptions,
    on_progress: Callable[[int], None],
    store: PictureStore | None = None,
) -> ImportReport:
    """Import every cell that the project does not have yet; write pictures that are gone again.

    In a bucket nothing is looked for.

    Args:
        connection: to Label Studio.
        project_id: of an existing project.
        sources: HDF5 files, pictures, folders.
        files_dir: document root of Label Studio's local files, as seen from here.
        options: how.
        on_progress: called with the number of cells done so far.
        store: where the pictures go; None: below `files_dir`, where the cards always are.

    Raises:
        SourceError: a source cannot be used.
        SourceChangedError: a source lacks cells that the project has of it.
        UnknownLabelError: labels that are no class.
        OutputError: the pictures, or where the sources lie, cannot be written.
        BucketError: the bucket cannot be used.
        LabelStudioError: Label Studio refuses something.
    """
    label_config = project_label_config(connection, project_id)
    report = ImportReport(skipped_labels=check_labels(sources, label_config, options))
    paths = TaskPaths(project_id)
    local = PictureFolder(files_dir)
    store = store or local
    _make_storage(connection, paths, files_dir)
    store.attach(connection, project_id)
    present, lost = _cells(connection, paths, files_dir)
    named = remember_sources(
        sources, options.read, files_dir=files_dir, project_id=project_id, cells=present
    )
    done: set[str] = set()
    crops = iter_named_crops(named, options.read, report.problems)
    with ThreadPoolExecutor(store.writers) as writers:
        while read := list(islice(crops, BATCH)):
            batch = list(_without_doubles(read, done, report.problems))
            fresh = [crop for crop in batch if crop.crop_id not in present]
            again = [crop for crop in batch if crop.crop_id in lost]
            write = partial(_write_files, paths=paths, files_dir=files_dir)
            stores = [local if lost[crop.crop_id] else None for crop in again]
            report.rewritten += len(list(writers.map(write, again, stores)))
            kinds = writers.map(write, fresh, repeat(store))
            tasks = [
                _task(crop, of_crop, paths=paths, store=store, config=label_config, options=options)
                for crop, of_crop in zip(fresh, kinds, strict=True)
            ]
            _import_tasks(connection, project_id, tasks)
            report.imported += len(tasks)
            report.labelled += sum("annotations" in task for task in tasks)
            report.already_there += len(batch) - len(fresh)
            on_progress(len(done))
    if not done:
        raise without_cells(sources, report.problems)
    return report


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The pictures cannot be written to {folder} ({error.strerror}).",
        hint="Choose a folder that you may write with --data-dir or --files-dir.",
    )


def _make_storage(connection: Connection, paths: TaskPaths, files_dir: Path) -> None:
    """Let Label Studio serve the project's folder, unless it does already."""
    folder = files_dir / paths.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    storages = connection.get("api/storages/localfiles/", project=paths.project_id)
    if any(Path(storage["path"]) == folder for storage in storages):
        return
    try:
        connection.post(
            "api/storages/localfiles/",
            {
                "project": paths.project_id,
                "path": str(folder),
                "title": "CellAI pictures",
                "use_blob_urls": True,
            },
        )
    except LabelStudioError as error:
        raise ConfigurationError(
            f"Label Studio cannot serve pictures from {folder}: {error.message}",
            hint="Start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={files_dir}, on this machine or with that"
            " folder mounted at the same path.",
        ) from error


def _cells(
    connection: Connection, paths: TaskPaths, files_dir: Path
) -> tuple[dict[str, str], dict[str, bool]]:
    """Cells that the project has, and those of them that lack a file below `files_dir`.

    Both are by crop id. A cell has the name of the HDF5 file, '' for pictures; of one that lacks a
    file it is said whether its pictures belong there, as its card does.
    """
    cells: dict[str, str] = {}
    lost: dict[str, bool] = {}
    page, n_read = 1, 0
    while True:
        answer = connection.get(
            "api/tasks/",
            project=paths.project_id,
            page=page,
            page_size=PAGE,
            fields="task_only",
            include="id,data",
            resolve_uri=False,
        )
        for row in answer["tasks"]:
            data = row["data"]
            file = data.get("source", "") if data.get("dataset") else ""
            crop_id = str(data.get("crop_id", ""))
            cells[crop_id] = str(file)
            local = paths.local_files(crop_id, data)
            if not all((files_dir / path).is_file() for path in local):
                lost[crop_id] = local != [paths.card(crop_id)]
        # Not by the size that was asked for: TASK_API_PAGE_SIZE_MAX may cut it.
        n_read += len(answer["tasks"])
        if not answer["tasks"] or n_read >= answer["total"]:
            return cells, lost
        page += 1


def _without_doubles(crops: Iterable[Crop], done: set[str], problems: Problems) -> Iterator[Crop]:
    """The crops that this import has not met yet; a file given twice under two names has them."""
    for crop in crops:
        if crop.crop_id in done:
            problems.report(crop.source, "cells equal to those of another file: left out")
        else:
            done.add(crop.crop_id)
            yield crop


def _write_files(
    crop: Crop, store: PictureStore | None, *, paths: TaskPaths, files_dir: Path
) -> set[str]:
    """Write the crop's pictures, and its first card if it has none; returns the pictures' keys.

    Without a store the card alone is written.
    """
    kinds: set[str] = set()
    try:
        if store is not None:
            for kind, pixels in pictures(crop):
                store.write(paths.picture(crop.crop_id, kind), encode_png(pixels))
                kinds.add(kind)
        card = files_dir / paths.card(crop.crop_id)
        if not card.exists():
            card.parent.mkdir(parents=True, exist_ok=True)
            write_card(card, render_placeholder("The model has not seen this cell yet."))
    except OSError as error:
        raise OutputError(
            f"The pictures cannot be written to {files_dir / paths.folder} ({error.strerror}).",
            hint="Make room or choose another folder, then run the same command again (an import"
            " with the --project that it printed): it goes on where it stopped.",
        ) from error
    return kinds


def _task(
    crop: Crop,
    kinds: set[str],
    *,
    paths: TaskPaths,
    store: PictureStore,
    config: LabelConfig,
    options: ImportOptions,
) -> dict[str, Any]:
    """The task of a crop whose pictures are written."""
    task: dict[str, Any] = {"data": task_data(crop, paths, kinds, picture_url=store.url)}
    if options.use_labels and crop.label in config.classes:
        task["annotations"] = [annotation(crop.label, config)]
    return task


def _import_tasks(connection: Connection, project_id: int, tasks: Sequence[dict[str, Any]]) -> None:
    if not tasks:
        return
    # A power cut must not leave tasks whose pictures are empty. All at once: of 2,000 pictures this
    # took 0.02 s, and 0.4 s to 0.6 s one by one.
    os.sync()
    answer = connection.post(f"api/projects/{project_id}/import", tasks, return_task_ids=True)
    if answer["task_count"] != len(tasks):
        raise ImportRejectedError(
            f"Label Studio created {answer['task_count']} of {len(tasks)} tasks.",
            hint="Run the same command again (an import with the --project that it printed): it"
            " imports what is missing.",
        )
    if answer["annotation_count"] == 0:
        # Label Studio 1.23.2 takes the labels out of the tasks, creates both, and, where its SQLite
        # was locked, does so once more: now without labels (BaseTaskSerializerBulk.create in
        # tasks/serializers.py). Of 294 imports beside another writer 10 lost them so.
        for task_id, task in zip(answer["task_ids"], tasks, strict=True):
            for label in task.get("annotations", ()):
                connection.post(f"api/tasks/{task_id}/annotations/", label)
