"""The `cellai` command: parses, calls, prints. Every error ends here in one sentence."""

import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from converters.backend_client import BackendClient, QueueState
from converters.cli_files import files
from converters.cli_operator import operator
from converters.cli_options import (
    ApiKey,
    BackendPassword,
    BackendUrl,
    BackendUser,
    Blind,
    Classes,
    CropSize,
    DataDir,
    FilesDir,
    Images,
    LabelConfigFile,
    Labels,
    Limit,
    MinArea,
    MoreSources,
    NoLabels,
    OutsideLinks,
    ProjectId,
    SensitivityOption,
    SkipUnknown,
    Url,
    backend_address,
    connect,
    console,
    needed_files_dir,
    out,
    stored_connection,
)
from converters.connection_file import FILE_NAME
from converters.crops import ReadOptions
from converters.errors import (
    BackendUnreachableError,
    CellAIError,
    ConfigurationError,
)
from converters.importing import (
    ImportOptions,
    ImportReport,
    check_files_dir,
    check_labels,
    import_sources,
    plan_import,
)
from converters.label_config import TEMPLATE_PATH, read_label_config, write_label_config
from converters.label_studio import Connection
from converters.launcher import Launcher, UpOptions
from converters.picture_store import PictureBucket
from converters.project import (
    BackendAddress,
    connect_backend,
    create_project,
    default_title,
    link_report,
    show_predictions,
)
from converters.reading import CropPlan
from converters.tables import problem_table
from converters.terminal import plain

app = typer.Typer(
    help="Blood cells from HDF5 into Label Studio, the most instructive one first.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(asked: bool) -> None:  # noqa: FBT001  # so typer calls it
    if asked:
        out.print(metadata.version("cellai"), highlight=False)
        raise typer.Exit


@app.callback()
def cellai(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of no command."""


@app.command()
def up(
    sources: MoreSources = None,
    *,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Where everything is kept.")] = Path(
        "cellai-data"
    ),
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
    backend_port: Annotated[int, typer.Option("--backend-port", min=1, max=65535)] = 9090,
    no_browser: Annotated[bool, typer.Option("--no-browser")] = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights of the network (safetensors).")
    ] = None,
    label_config: LabelConfigFile = None,
    classes: Classes = "",
    images: Images = "",
    labels: Labels = "",
    sensitivity: SensitivityOption = "medium",
    crop_size: CropSize = 96,
    min_area: MinArea = 20,
    limit: Limit = None,
    outside_links: OutsideLinks = False,
    no_labels: NoLabels = False,
    skip_unknown_labels: SkipUnknown = False,
    blind: Blind = None,
) -> None:
    """Start Label Studio and the backend, import sources, and sort the queue."""
    options = UpOptions(
        data_dir=data_dir,
        port=port,
        backend_port=backend_port,
        weights=weights,
        label_config=_label_config(label_config, classes),
        asks_for_classes=label_config is not None or bool(classes),
        import_options=ImportOptions(
            read=ReadOptions(
                images=images,
                labels=labels,
                sensitivity=sensitivity,
                crop_size_px=crop_size,
                min_area_px=min_area,
                limit=limit,
                outside_links=outside_links,
            ),
            use_labels=not no_labels,
            skip_unknown_labels=skip_unknown_labels,
        ),
        blind=blind,
    )
    _check_before_start(sources or [], options)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Launcher(options, say=console.print) as launcher:
            _bring_up(launcher, sources or [], options, open_browser=not no_browser)
            launcher.watch()
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on where it was.")


@app.command("import")
def import_command(
    sources: MoreSources = None,
    *,
    data_dir: DataDir = None,
    url: Url = "",
    api_key: ApiKey = "",
    project: ProjectId = None,
    files_dir: FilesDir = None,
    bucket: Annotated[
        str,
        typer.Option("--bucket", help="S3 bucket for the pictures: s3://NAME or s3://NAME/PREFIX."),
    ] = "",
    title: Annotated[str, typer.Option("--title", help="Create a project of this name.")] = "",
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
    label_config: LabelConfigFile = None,
    classes: Classes = "",
    images: Images = "",
    labels: Labels = "",
    sensitivity: SensitivityOption = "medium",
    crop_size: CropSize = 96,
    min_area: MinArea = 20,
    limit: Limit = None,
    outside_links: OutsideLinks = False,
    no_labels: NoLabels = False,
    skip_unknown_labels: SkipUnknown = False,
    blind: Blind = None,
) -> None:
    """Import sources into a Label Studio that already runs; prints the project's number.

    With --project and no source, only connect the backend anew, or switch --blind.
    """
    sources = sources or []
    stored = stored_connection(data_dir, url)
    connection = connect(stored, url, api_key)
    backend = backend_address(stored, backend_url, backend_user, backend_password)
    options = ImportOptions(
        read=ReadOptions(
            images=images,
            labels=labels,
            sensitivity=sensitivity,
            crop_size_px=crop_size,
            min_area_px=min_area,
            limit=limit,
            outside_links=outside_links,
        ),
        use_labels=not no_labels,
        skip_unknown_labels=skip_unknown_labels,
    )
    if project is None and stored is not None and not title:
        project = stored.project_id
    if not sources and project is None:
        raise ConfigurationError(
            "No source is given.",
            hint="Name HDF5 files, pictures or folders, or the project to connect with --project.",
        )
    if project is not None and (label_config is not None or classes):
        raise ConfigurationError(
            f"Project {project} has its own classes.",
            hint="Leave out --classes and --label-config, or name a new project with --title.",
        )
    if project is not None and title:
        raise ConfigurationError(
            f"Project {project} has its own title.",
            hint="Leave out --title, or leave out --project to create a project of that title.",
        )
    root = needed_files_dir(files_dir, data_dir) if sources else None
    plan = plan_import(sources, options) if sources else None
    store = PictureBucket(bucket) if bucket else None
    connection.get("api/current-user/whoami")
    if root is not None:
        check_files_dir(root)
    if project is None:
        xml = _label_config(label_config, classes)
        check_labels(sources, read_label_config(xml), options)
        project = create_project(
            connection, title=title or default_title(sources[0]), label_config=xml
        )
        console.print(
            f"Project {project} created; after an interruption the same command with"
            f" --project {project} goes on."
        )
    if blind is not None:
        show_predictions(connection, project, shown=not blind)
    if root is not None and plan is not None:
        _import(
            plan,
            lambda on_progress: import_sources(
                connection,
                project,
                sources,
                files_dir=root,
                options=options,
                on_progress=on_progress,
                store=store,
            ),
        )
    if store is not None:
        console.print(plain(f"The backend reads them with CELLAI_BUCKET_URL={store.public_url}"))
    out.print(str(project))
    if backend is not None:
        connect_backend(connection, project, backend)
        _announce(connection, project, backend)


app.add_typer(files)
app.add_typer(operator)


def main() -> None:
    """Entry point; errors become one sentence on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names hold letters that its encoding may lack
            stream.reconfigure(errors="replace")
    try:
        app()
    except CellAIError as error:
        console.print(f"[bold red]Error:[/] {plain(error.message)}", soft_wrap=True)
        console.print(plain(error.hint), soft_wrap=True)
        sys.exit(error.exit_code)


def _check_before_start(sources: Sequence[Path], options: UpOptions) -> None:
    """Refuse bad sources, labels and weights before anything is started or written."""
    if options.weights is not None and not options.weights.is_file():
        raise ConfigurationError(
            f"The weights file {options.weights} does not exist.", hint="Correct --weights."
        )
    if not sources:
        return
    plan_import(sources, options.import_options)
    if not (options.data_dir / FILE_NAME).exists():  # else the project has classes already
        check_labels(sources, read_label_config(options.label_config), options.import_options)


def _bring_up(
    launcher: Launcher, sources: Sequence[Path], options: UpOptions, *, open_browser: bool
) -> None:
    console.print("Starting Label Studio and the backend (the first start takes a minute) …")
    with console.status("Waiting for both to answer …") as line:

        def wait(state: str) -> None:
            line.update(plain(f"Waiting for the backend: {state or 'starting'} …"))

        launcher.wait_until_up(on_state=wait)
    if sources:
        _import(
            plan_import(sources, options.import_options),
            lambda on_progress: launcher.import_sources(sources, on_progress=on_progress),
        )
    launcher.connect()
    with console.status("Sorting the queue …") as line:

        def show(state: QueueState) -> None:
            line.update(f"Sorting the queue: {state.stage or 'waiting'} …")

        state = launcher.wait_until_sorted(on_state=show)
    connection = launcher.connection_file
    if state.is_sorted:
        console.print(f"The queue is sorted by {state.model_version} ({state.n_labels} labels).")
    out.print(f"\n  {launcher.labelling_url}", highlight=False)
    out.print(f"  login {connection.email}  password {connection.password}\n", highlight=False)
    out.print(f"  progress report {launcher.report_url}", highlight=False)
    user, password = connection.backend_user, connection.backend_password
    out.print(f"  login {user}  password {password}\n", highlight=False)
    console.print("Ctrl+C stops everything.")
    if open_browser:
        launcher.open_browser()


def _import(plan: CropPlan, run: Any) -> None:
    """Run an import with a progress bar and print what it did."""
    columns = (TextColumn("Importing cells"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("import", total=plan.cells)
        report: ImportReport = run(lambda done: bar.update(task, completed=done))
        bar.update(task, total=report.imported + report.already_there)
    console.print(
        f"{report.imported} cells imported, {report.labelled} of them labelled;"
        f" {report.already_there} were there already."
    )
    if report.rewritten:
        console.print(f"{report.rewritten} of these lacked files, which are written again.")
    for label, count in report.skipped_labels.items():
        console.print(plain(f"  label {label!r} is no class: {count} cells imported unlabelled"))
    if len(report.problems):
        console.print(problem_table(report.problems))


def _announce(connection: Connection, project: int, backend: BackendAddress) -> None:
    """Tell the backend of new tasks, and the project of the backend's report.

    The address is the one at which Label Studio reaches the backend, and this command may not.
    """
    client = BackendClient(backend)
    try:
        client.announce_tasks(project)
        link_report(connection, project, backend, public_url=client.public_url())
    except BackendUnreachableError as error:
        console.print(
            plain(
                f"{error.message} If Label Studio reaches it, nothing is missing but a link to the"
                " progress report, and the new cells are noticed within two minutes."
            )
        )


def _label_config(path: Path | None, classes: str) -> str:
    """The labelling config's XML, checked.

    Raises:
        ConfigurationError: both options given, or the file cannot be read.
        LabelConfigError: it cannot be used.
    """
    if path is not None and classes:
        raise ConfigurationError(
            "--label-config and --classes exclude each other.", hint="Give one of them."
        )
    if classes:
        return write_label_config([name.strip() for name in classes.split(",")])
    try:
        xml = (path or TEMPLATE_PATH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The labelling config {path} cannot be read.", hint="Correct --label-config."
        ) from error
    read_label_config(xml)
    return xml


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
