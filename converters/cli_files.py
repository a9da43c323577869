"""Commands that write or show files: labels, the report, what a source holds, synthetic cells."""

from pathlib import Path
from typing import Annotated

import typer

from converters.backend_client import BackendClient
from converters.cli_options import (
    ApiKey,
    BackendPassword,
    BackendUrl,
    BackendUser,
    CropSize,
    DataDir,
    FilesDir,
    Images,
    Labels,
    MinArea,
    OutsideLinks,
    ProjectId,
    SensitivityOption,
    Sources,
    Url,
    connect,
    console,
    needed_backend,
    needed_files_dir,
    needed_project,
    out,
    stored_connection,
)
from converters.connection_file import read_connection
from converters.crops import ReadOptions
from converters.durable import replacing
from converters.errors import ConfigurationError, OutputError, UnknownLayoutError
from converters.export import export_labels
from converters.exported_cells import export_tasks
from converters.inspection import inspect_source
from converters.project import project_label_config
from converters.sample import write_sample_crops, write_sample_frames
from converters.source_record import read_sources, sources_file
from converters.tables import inspection_parts
from converters.terminal import plain

files = typer.Typer()


@files.command()
def export(
    *,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for copies and table.")],
    data_dir: DataDir = None,
    url: Url = "",
    api_key: ApiKey = "",
    project: ProjectId = None,
    files_dir: FilesDir = None,
) -> None:
    """Write the labels into copies of the HDF5 sources and into a CSV table; verified."""
    stored = stored_connection(data_dir, url)
    connection = connect(stored, url, api_key)
    number = needed_project(stored, project)
    root = needed_files_dir(files_dir, data_dir)
    sources = read_sources(root, number)
    tasks = export_tasks(connection, number)
    report = export_labels(
        tasks,
        sources,
        out_dir=out_dir,
        project=f"{connection.get(f'api/projects/{number}/')['title']} ({number})",
        classes=project_label_config(connection, number).classes,
    )
    for name, copy in report.copies.items():
        console.print(plain(f"{name}: labels written to {copy} and verified"))
    for name, count in report.csv_only.items():
        console.print(plain(f"{name}: {count} labels, in the table only"))
    if not sources and any(task.dataset and task.chosen is not None for task in tasks):
        console.print(
            plain(
                f"Warning: no HDF5 file was copied, because {sources_file(root, number)} does not"
                " exist, which says where the sources lie. If they were imported on this machine,"
                " correct --files-dir and export into a new folder."
            ),
            style="yellow",
            soft_wrap=True,
        )
    console.print(plain(f"{report.n_labels} labels in {report.csv}"))


@files.command()
def report(
    *,
    out_file: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Write the progress report of a project as one HTML file that needs no other."""
    stored = None if data_dir is None else read_connection(data_dir)
    backend = needed_backend(stored, backend_url, backend_user, backend_password)
    page = BackendClient(backend).report(needed_project(stored, project))
    try:
        with replacing(out_file) as path:
            path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{out_file} cannot be written ({error.strerror}).", hint="Choose another folder."
        ) from error
    console.print(plain(f"Wrote the progress report to {out_file}."))


@files.command("inspect")
def inspect_command(
    sources: Sources,
    *,
    images: Images = "",
    labels: Labels = "",
    sensitivity: SensitivityOption = "medium",
    crop_size: CropSize = 96,
    min_area: MinArea = 20,
    outside_links: OutsideLinks = False,
) -> None:
    """Show the datasets of a source, its layout or why none matched, counts, ranges, labels."""
    options = ReadOptions(
        images=images,
        labels=labels,
        sensitivity=sensitivity,
        crop_size_px=crop_size,
        min_area_px=min_area,
        outside_links=outside_links,
    )
    is_bad = False
    for source in sources:
        inspection = inspect_source(source, options=options)
        is_bad |= bool(inspection.error)
        for part in inspection_parts(inspection):
            out.print(part)
    if is_bad:
        raise typer.Exit(UnknownLayoutError.exit_code)


@files.command()
def sample(
    path: Annotated[Path, typer.Argument(help="File to write: .seg (crops) or .pre (frames).")],
    *,
    cells: Annotated[int, typer.Option("--cells", min=5, help="Number of crops.")] = 600,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Number of frames.")] = 24,
    labelled: Annotated[
        float, typer.Option("--labelled", min=0, max=1, help="Share of crops with a label.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Write a file of SYNTHETIC blood cells, to try CellAI without own recordings."""
    if path.suffix not in {".seg", ".pre"}:
        raise ConfigurationError(
            f"{path} is neither .seg nor .pre.", hint="Name the file sample.seg or sample.pre."
        )
    try:
        if path.exists():
            raise ConfigurationError(
                f"{path} exists already, and nothing is overwritten.",
                hint="Choose another name, or delete it.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".seg":
            write_sample_crops(path, n_cells=cells, seed=seed, labelled_share=labelled)
        else:
            write_sample_frames(path, n_frames=frames, seed=seed)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror}).", hint="Choose another folder."
        ) from error
    console.print(plain(f"Wrote synthetic cells to {path}."))
