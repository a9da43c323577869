"""Where the sources of a project lie and how they were read, noted for the export."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from converters.crops import ReadOptions
from converters.durable import replacing
from converters.export import ExportSource
from converters.reading import name_sources
from converters.source import fingerprint


def remember_sources(
    sources: Sequence[Path], read: ReadOptions, *, files_dir: Path, project_id: int
) -> None:
    """Note where the project's sources lie, so that labels can be written back to copies.

    Raises:
        UnreadableSourceError: a source cannot be read.
        OSError: the note cannot be written.
    """
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


def _sources_file(files_dir: Path, project_id: int) -> Path:
    """Where the sources of a project are noted; outside of what Label Studio serves."""
    return files_dir / "sources" / f"project-{project_id}.json"
