"""Where the sources of a project lie and how they were read, noted for the export."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from converters.crops import ReadOptions
from converters.durable import replacing
from converters.errors import ConfigurationError, OutputError, SourceChangedError
from converters.export import ExportSource
from converters.reading import NamedSource, iter_named_crops, name_sources
from converters.source import fingerprint


def remember_sources(
    sources: Sequence[Path],
    read: ReadOptions,
    *,
    files_dir: Path,
    project_id: int,
    cells: Mapping[str, str],
) -> list[NamedSource]:
    """Note where the project's sources lie, so that labels can be written back to copies.

    Args:
        sources: files and folders.
        read: how they are read.
        files_dir: where the note lies.
        project_id: of the project.
        cells: by crop id, the cells in HDF5 files that the project has; the name of the file.

    Returns:
        The sources under the names that their tasks must carry. A source that the project has
        already keeps its name, wherever it was moved to; another one of the same name gets as
        much of its folders as tells it apart.

    Raises:
        UnreadableSourceError: a source cannot be read.
        SourceChangedError: a source has changed and lacks cells that the project has of it.
        OutputError: the note cannot be written.
        ConfigurationError: that of earlier imports is damaged.
    """
    record = sources_file(files_dir, project_id)
    known = read_sources(files_dir, project_id)
    named = []
    for given in name_sources(sources):
        source = ExportSource(given.path.resolve(), fingerprint(given.path), read)
        name = _own_name(given.name, source, known)
        own = NamedSource(given.path, name)
        if name not in known or known[name].sha256 != source.sha256:
            _check_cells_kept(own, read, cells)
        known[name] = source
        named.append(own)
    rows = {name: asdict(source) | {"path": str(source.path)} for name, source in known.items()}
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with replacing(record) as path:
            path.write_text(json.dumps(rows, indent=1))
    except OSError as error:
        raise OutputError(
            f"{record} cannot be written ({error.strerror}).",
            hint="Make room or choose a folder that you may write, then run the same command again"
            " (an import with the --project that it printed).",
        ) from error
    return named


def _check_cells_kept(source: NamedSource, read: ReadOptions, cells: Mapping[str, str]) -> None:
    """A file may grow; but the labels of cells that are gone would be written to others."""
    of_source = {
        crop_id
        for crop_id, file in cells.items()
        if PurePosixPath(file).is_relative_to(source.name)
    }
    if not of_source:
        return
    crops = iter_named_crops([source], replace(read, limit=None))
    gone = of_source.difference(crop.crop_id for crop in crops)
    if gone:
        raise SourceChangedError(
            f"{source.path} lacks {len(gone)} of the {len(of_source)} cells that the project has of"
            " it: it has changed since its import, or is read with other options.",
            hint="Put the imported file back, or import this one into a new project.",
        )


def _own_name(wanted: str, source: ExportSource, known: Mapping[str, ExportSource]) -> str:
    """The name by which the project knows the source, else one that leads to nothing it has."""
    path = source.path
    for name, other in known.items():
        if other.path == path:
            return name
    for name, other in known.items():
        if other.sha256 == source.sha256 and PurePosixPath(name).name == path.name:
            return name
    longer = (Path(*path.parts[-n:]).as_posix() for n in range(2, len(path.parts) + 1))
    free = (name for name in (wanted, *longer) if not any(_overlap(name, one) for one in known))
    return next(free, path.as_posix())


def _overlap(one: str, other: str) -> bool:
    """Whether names are equal, or one is that of a file in the folder that the other names."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def read_sources(files_dir: Path, project_id: int) -> dict[str, ExportSource]:
    """The sources of a project as they were imported, by the name its tasks carry.

    Raises:
        ConfigurationError: the note is damaged or may not be read.
    """
    record = sources_file(files_dir, project_id)
    if not record.exists():
        return {}
    try:
        rows = json.loads(record.read_bytes())
        return {
            name: ExportSource(Path(row["path"]), row["sha256"], ReadOptions(**row["read"]))
            for name, row in rows.items()
        }
    except OSError as error:
        raise ConfigurationError(
            f"{record} cannot be read ({error.strerror}).", hint="Check that you may read it."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Taken for none, an export would leave labels out, and the next import overwrite it.
        raise ConfigurationError(
            f"{record} is damaged, so it is not known where the project's sources lie.",
            hint="Put it back from a backup; or remove it and import all sources of the project"
            " again with --project, in the same order: no cell is imported twice.",
        ) from error


def sources_file(files_dir: Path, project_id: int) -> Path:
    """Where the sources of a project are noted; outside of what Label Studio serves."""
    return files_dir / "sources" / f"project-{project_id}.json"
