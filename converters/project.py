"""Sources into a Label Studio project: create it, store the pictures, import tasks, connect.

Streamed in batches: pictures on disk first, then the tasks that name them. Which crops are
in the project is asked from Label Studio itself, so an import that was killed goes on where
it was, and a second import of the same source adds nothing.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from converters.crops import Crop, ReadOptions, count_labels, iter_crops, name_sources
from converters.durable import replacing
from converters.errors import (
    ConfigurationError,
    EmptySourceError,
    ImportRejectedError,
    LabelStudioError,
    OutputError,
    UnknownLabelError,
)
from converters.export import ExportSource, ExportTask, export_task
from converters.label_config import LabelConfig, read_label_config
from converters.label_studio import Connection
from converters.picture_store import PictureFolder, PictureStore
from converters.placeholder import render_placeholder, write_card
from converters.problems import Problems
from converters.rendering import encode_png
from converters.screen import data_manager_tabs
from converters.source import fingerprint
from converters.tasks import TaskPaths, annotation, pictures, task_data

BATCH = 500
PAGE = 10_000
BACKEND_TITLE = "CellAI"
TITLE_LENGTH = (3, 50)  # fewest and most characters of a project's title in Label Studio 1.23.2
SAMPLING = "Uncertainty sampling"
REPORT_LINE = "Progress report: "
# What the backend needs to hear of; more would make imports slow (whole tasks are sent).
WEBHOOK_ACTIONS = [
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
]


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """Where the ML backend listens, and the user and password it asks for ('' for none)."""

    url: str
    user: str = ""
    password: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Basic authentication for webhooks, to which Label Studio adds none itself."""
        if not self.password:
            return {}
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {token}"}


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
    skipped_labels: dict[str, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)


def default_title(source: Path) -> str:
    """Title of a project that is named after its first source, as long as Label Studio allows."""
    title = f"CellAI: {source.name}"
    return title if len(title) <= TITLE_LENGTH[1] else title[: TITLE_LENGTH[1] - 1] + "…"


def create_project(connection: Connection, *, title: str, label_config: str) -> int:
    """Create a project that serves the lowest score first, with tabs to match; returns its id.

    The tabs must be there before anybody opens the project: Label Studio would add a default
    one, whose order a link to the labelling page would follow instead of the score.

    Raises:
        ConfigurationError: the title is shorter or longer than Label Studio allows.
    """
    shortest, longest = TITLE_LENGTH
    if not shortest <= len(title) <= longest:
        raise ConfigurationError(
            f"The title {title!r} has {len(title)} characters.",
            hint=f"Label Studio takes titles of {shortest} to {longest}: choose another --title.",
        )
    project = connection.post(
        "api/projects/",
        {
            "title": title,
            "label_config": label_config,
            "sampling": SAMPLING,
            "show_collab_predictions": True,
            "evaluate_predictions_automatically": False,
            "maximum_annotations": 1,
        },
    )
    for tab in data_manager_tabs(read_label_config(label_config)):
        connection.post("api/dm/views/", {"project": project["id"], "data": tab})
    return int(project["id"])


def check_classes(connection: Connection, project_id: int, wanted: LabelConfig) -> None:
    """Refuse to go on with a project of other classes.

    Raises:
        ConfigurationError: they differ; names those of the project.
    """
    classes = project_label_config(connection, project_id).classes
    if set(classes) != set(wanted.classes):
        raise ConfigurationError(
            f"Project {project_id} has the classes {', '.join(classes)}.",
            hint="Leave out --classes and --label-config, or start another project with another"
            " --data-dir.",
        )


def project_label_config(connection: Connection, project_id: int) -> LabelConfig:
    """The labelling config of an existing project.

    Raises:
        LabelConfigError: it has no choice of classes.
    """
    return read_label_config(connection.get(f"api/projects/{project_id}/")["label_config"])


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
    """Import every cell that the project does not have yet.

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
        UnknownLabelError: labels that are no class.
        OutputError: the pictures cannot be written.
        BucketError: the bucket cannot be used.
        LabelStudioError: Label Studio refuses something.
    """
    label_config = project_label_config(connection, project_id)
    report = ImportReport(skipped_labels=check_labels(sources, label_config, options))
    paths = TaskPaths(project_id)
    store = store or PictureFolder(files_dir)
    _make_storage(connection, paths, files_dir)
    store.attach(connection, project_id)
    remember_sources(sources, options.read, files_dir=files_dir, project_id=project_id)
    present = _crop_ids(connection, project_id)
    done: set[str] = set()
    crops = iter_crops(sources, options=options.read, problems=report.problems)
    with ThreadPoolExecutor(store.writers) as writers:
        while read := list(islice(crops, BATCH)):
            batch = list(_without_doubles(read, done, report.problems))
            fresh = [crop for crop in batch if crop.crop_id not in present]
            write = partial(
                _task,
                paths=paths,
                files_dir=files_dir,
                store=store,
                config=label_config,
                options=options,
            )
            tasks = list(writers.map(write, fresh))
            _import_tasks(connection, project_id, tasks)
            report.imported += len(tasks)
            report.labelled += sum("annotations" in task for task in tasks)
            report.already_there += len(batch) - len(fresh)
            on_progress(len(done))
    if not done:
        raise EmptySourceError(
            f"No cell was found in {', '.join(str(source) for source in sources)}"
            f"{''.join(f'; {p.reason}: {p.count}' for p in report.problems)}.",
            hint="Try --sensitivity high or a smaller --min-area; `cellai inspect` shows the file.",
        )
    return report


def connect_backend(connection: Connection, project_id: int, backend: BackendAddress) -> None:
    """Attach the ML backend to a project, or correct an attachment.

    The project is set to serve the lowest score first, whoever created it.

    Raises:
        BlockedAddressError: Label Studio refuses the backend's address.
        LabelStudioError: the backend does not answer Label Studio.
    """
    settings = {
        "project": project_id,
        "url": backend.url,
        "title": BACKEND_TITLE,
        "auth_method": "BASIC_AUTH" if backend.password else "NONE",
        "basic_auth_user": backend.user,
        "basic_auth_pass": backend.password,
    }
    attached = [
        row
        for row in connection.get("api/ml/", project=project_id)
        if row["title"] == BACKEND_TITLE
    ]
    if not attached:
        connection.post("api/ml/", settings)
    elif attached[0]["url"].rstrip("/") != backend.url or backend.password:
        connection.patch(f"api/ml/{attached[0]['id']}", settings)
    connection.patch(f"api/projects/{project_id}/", {"sampling": SAMPLING})
    # Label Studio makes the first by itself; others of the project are somebody else's.
    own = {f"{row['url'].rstrip('/')}/webhook" for row in attached}
    _narrow_webhooks(connection, project_id, backend, own=own)


def show_predictions(connection: Connection, project_id: int, *, shown: bool) -> None:
    """Show annotators what the model thinks, or hide it; the order of the queue stays.

    The backend reads the project's setting and writes the cards to match.
    """
    path = f"api/projects/{project_id}/"
    version = connection.get(path)["model_version"]
    connection.patch(path, {"show_collab_predictions": shown})
    if version:
        # Label Studio 1.23.2 forgets by the first request which version sorts the queue, and
        # would forget it again if it stood in the same one.
        connection.patch(path, {"model_version": version})


def link_report(
    connection: Connection, project_id: int, backend: BackendAddress, *, public_url: str
) -> None:
    """Name the report's address in an empty description; elsewhere only keep it right.

    A description of the user's own stays as it is, and so does an address on a host that is
    neither of the two given.

    Args:
        connection: to Label Studio.
        project_id: of the project.
        backend: as Label Studio reaches it; earlier links may name its host.
        public_url: address of the backend as browsers reach it.
    """
    address = f"{public_url}/report/{project_id}"
    hosts = {urlsplit(url).hostname for url in (public_url, backend.url)}
    described = connection.get(f"api/projects/{project_id}/")["description"] or ""
    lines = [
        REPORT_LINE + address
        if line.startswith(REPORT_LINE)
        and urlsplit(line.removeprefix(REPORT_LINE)).hostname in hosts
        else line
        for line in described.splitlines()
    ]
    text = "\n".join(lines) or REPORT_LINE + address
    if text != described:
        connection.patch(f"api/projects/{project_id}/", {"description": text})


def remember_sources(
    sources: Sequence[Path], read: ReadOptions, *, files_dir: Path, project_id: int
) -> None:
    """Note where the project's sources lie, so that labels can be written back to copies."""
    record = _sources_file(files_dir, project_id)
    record.parent.mkdir(parents=True, exist_ok=True)
    known = read_sources(files_dir, project_id)
    for named in name_sources(sources):
        path = named.path.resolve()
        known[named.name] = ExportSource(path, fingerprint(path), read)
    rows = {name: asdict(source) | {"path": str(source.path)} for name, source in known.items()}
    with replacing(record) as path:
        path.write_text(json.dumps(rows, indent=1))


def read_sources(files_dir: Path, project_id: int) -> dict[str, ExportSource]:
    """The sources of a project as they were imported, by the name its tasks carry."""
    record = _sources_file(files_dir, project_id)
    rows = json.loads(record.read_text()) if record.exists() else {}
    return {
        name: ExportSource(Path(row["path"]), row["sha256"], ReadOptions(**row["read"]))
        for name, row in rows.items()
    }


def export_tasks(connection: Connection, project_id: int) -> list[ExportTask]:
    """All tasks of a project with the label that the rule chooses."""
    from_name = project_label_config(connection, project_id).from_name
    annotators = {str(user["id"]): str(user["email"]) for user in connection.get("api/users/")}
    rows = connection.get(
        f"api/projects/{project_id}/export", exportType="JSON", download_all_tasks=True
    )
    return [export_task(row, from_name=from_name, annotators=annotators) for row in rows]


def _sources_file(files_dir: Path, project_id: int) -> Path:
    """Where the sources of a project are noted; outside of what Label Studio serves."""
    return files_dir / "sources" / f"project-{project_id}.json"


def _make_storage(connection: Connection, paths: TaskPaths, files_dir: Path) -> None:
    """Let Label Studio serve the project's folder, unless it does already."""
    folder = files_dir / paths.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The pictures cannot be written to {folder} ({error.strerror}).",
            hint="Choose a folder that you may write with --data-dir or --files-dir.",
        ) from error
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


def _crop_ids(connection: Connection, project_id: int) -> set[str]:
    """Crops that the project has."""
    crop_ids: set[str] = set()
    page = 1
    while True:
        answer = connection.get(
            "api/tasks/",
            project=project_id,
            page=page,
            page_size=PAGE,
            fields="task_only",
            include="id,data",
            resolve_uri=False,
        )
        crop_ids.update(str(row["data"].get("crop_id", "")) for row in answer["tasks"])
        if page * PAGE >= answer["total"]:
            return crop_ids
        page += 1


def _without_doubles(crops: Iterable[Crop], done: set[str], problems: Problems) -> Iterator[Crop]:
    """The crops that this import has not met yet; a file given twice under two names has them."""
    for crop in crops:
        if crop.crop_id in done:
            problems.report(crop.source, "cells equal to those of another file: left out")
        else:
            done.add(crop.crop_id)
            yield crop


def _task(
    crop: Crop,
    *,
    paths: TaskPaths,
    files_dir: Path,
    store: PictureStore,
    config: LabelConfig,
    options: ImportOptions,
) -> dict[str, Any]:
    """Write the crop's pictures and its first card; returns the task."""
    kinds: set[str] = set()
    try:
        for kind, pixels in pictures(crop):
            store.write(paths.picture(crop.crop_id, kind), encode_png(pixels))
            kinds.add(kind)
        card = files_dir / paths.card(crop.crop_id)
        card.parent.mkdir(parents=True, exist_ok=True)
        write_card(card, render_placeholder("The model has not seen this cell yet."))
    except OSError as error:
        raise OutputError(
            f"The pictures cannot be written to {files_dir / paths.folder} ({error.strerror}).",
            hint="Make room or choose another folder, then run the same command again (an import"
            " with the --project that it printed): it goes on where it stopped.",
        ) from error
    task: dict[str, Any] = {"data": task_data(crop, paths, kinds, picture_url=store.url)}
    if options.use_labels and crop.label in config.classes:
        task["annotations"] = [annotation(crop.label, config)]
    return task


def _import_tasks(connection: Connection, project_id: int, tasks: Sequence[dict[str, Any]]) -> None:
    if not tasks:
        return
    answer = connection.post(f"api/projects/{project_id}/import", tasks)
    if answer["task_count"] != len(tasks):
        raise ImportRejectedError(
            f"Label Studio created {answer['task_count']} of {len(tasks)} tasks.",
            hint="Run the same command again (an import with the --project that it printed): it"
            " imports what is missing.",
        )


def _narrow_webhooks(
    connection: Connection, project_id: int, backend: BackendAddress, *, own: set[str]
) -> None:
    """Make Label Studio send label events only, with the password it leaves out by itself.

    Args:
        connection: to Label Studio.
        project_id: of the project.
        backend: where the one webhook leads afterwards.
        own: addresses of webhooks that lead to where the backend was before.
    """
    target = f"{backend.url}/webhook"
    found = [
        row
        for row in connection.get("api/webhooks/", project=project_id)
        if row["url"] in own | {target}
    ]
    settings = {
        "url": target,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": WEBHOOK_ACTIONS,
        "headers": backend.headers,
        "is_active": True,
    }
    kept = False
    for row in found:
        if kept:  # one is enough: each costs the annotator time
            connection.request("DELETE", f"api/webhooks/{row['id']}/")
        else:
            connection.patch(f"api/webhooks/{row['id']}/", settings, project=project_id)
            kept = True
    if not kept:
        connection.post("api/webhooks/", settings | {"project": project_id})
