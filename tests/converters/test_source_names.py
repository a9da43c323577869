"""Each file of a project has a name of its own, in whichever commands it was imported."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_limit import longest_file

from converters.crops import ReadOptions
from converters.errors import OutputError, SourceChangedError
from converters.reading import iter_named_crops
from converters.source_record import read_sources, remember_sources

WriteHdf5 = Callable[..., Path]
PROJECT = 3


@pytest.fixture
def write_day(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> Callable[[str], Path]:
    """Writes `day/M001.rtdc`, which differs from that of every other day."""

    def write(day: str) -> Path:
        phase = crop_stack["phase/images"] + len(day)
        return write_hdf5(f"{day}/M001.rtdc", crop_stack | {"phase/images": phase})

    return write


def cells_of(files_dir: Path, *sources: Path, project: dict[str, str]) -> dict[str, str]:
    """What one command finds, of a project that has some cells; the file's name by crop id."""
    named = remember_sources(
        sources, ReadOptions(), files_dir=files_dir, project_id=PROJECT, cells=project
    )
    return {crop.crop_id: crop.source for crop in iter_named_crops(named, ReadOptions())}


def imported(files_dir: Path, *sources: Path) -> list[str]:
    """The names that one command's cells carry, in order."""
    return list(dict.fromkeys(cells_of(files_dir, *sources, project={}).values()))


def places(files_dir: Path) -> dict[str, Path]:
    return {name: source.path for name, source in read_sources(files_dir, PROJECT).items()}


def test_second_file_of_a_name_gets_another_one(
    tmp_path: Path, write_day: Callable[[str], Path]
) -> None:
    first, second, third = write_day("d1"), write_day("day2"), write_day("week/day2")
    assert imported(tmp_path, first) == ["M001.rtdc"]
    assert imported(tmp_path, second) == ["day2/M001.rtdc"]
    assert imported(tmp_path, third) == ["week/day2/M001.rtdc"]
    expected = {"M001.rtdc": first, "day2/M001.rtdc": second, "week/day2/M001.rtdc": third}
    assert places(tmp_path) == expected

    assert imported(tmp_path, second, first) == ["day2/M001.rtdc", "M001.rtdc"]
    assert places(tmp_path) == expected


def test_moved_file_keeps_its_name(tmp_path: Path, write_day: Callable[[str], Path]) -> None:
    first, second = write_day("d1"), write_day("day2")
    imported(tmp_path, first)
    imported(tmp_path, second)
    archive = tmp_path / "archive"
    archive.mkdir()
    moved = Path(shutil.move(second, archive))
    assert imported(tmp_path, moved) == ["day2/M001.rtdc"]
    assert places(tmp_path) == {"M001.rtdc": first, "day2/M001.rtdc": moved}


def test_files_of_folders_are_told_apart(tmp_path: Path, write_day: Callable[[str], Path]) -> None:
    first, second, alone = write_day("d1"), write_day("day2"), write_day("apart/d1")
    assert imported(tmp_path, first.parent) == ["d1/M001.rtdc"]
    assert imported(tmp_path, second.parent) == ["day2/M001.rtdc"]
    # Neither a file nor a folder takes the name of a file in an imported folder.
    assert imported(tmp_path, alone) == ["M001.rtdc"]
    other = write_day("other/week/d1")
    imported(tmp_path, other)
    assert imported(tmp_path, alone.parent) == ["apart/d1/M001.rtdc"]
    names = list(places(tmp_path))
    assert names == ["d1", "day2", "M001.rtdc", "week/d1/M001.rtdc", "apart/d1"]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "in a folder"])
def test_changed_file_is_refused_unless_it_has_all_cells_it_had(
    tmp_path: Path, write_hdf5: WriteHdf5, crop_stack: dict[str, Any], folder: bool
) -> None:
    """Labels of cells that are gone would be written to the cells in their places."""
    files_dir = tmp_path / "files"
    path = write_hdf5("day/M001.rtdc", crop_stack)
    source = path.parent if folder else path
    project = cells_of(files_dir, source, project={})
    grown = {name: np.concatenate([values, values]) for name, values in crop_stack.items()}
    write_hdf5("day/M001.rtdc", grown)
    assert set(project) < set(cells_of(files_dir, source, project=project))

    write_hdf5("day/M001.rtdc", crop_stack | {"phase/images": crop_stack["phase/images"] + 1})
    noted = (files_dir / "sources/project-3.json").read_bytes()
    with pytest.raises(SourceChangedError, match=rf"lacks {len(project)} of the {len(project)}"):
        cells_of(files_dir, source, project=project)
    assert (files_dir / "sources/project-3.json").read_bytes() == noted

    # Without the note the cells still tell: those of another file are none of its own.
    (files_dir / "sources/project-3.json").unlink()
    with pytest.raises(SourceChangedError, match="lacks"):
        cells_of(files_dir, source, project=project)
    cells_of(files_dir, source, project=dict.fromkeys(project, "day2/M001.rtdc"))


def test_record_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, write_day: Callable[[str], Path]
) -> None:
    path = write_day("d1")
    with longest_file(10), pytest.raises(OutputError, match=r"project-3\.json cannot be written"):
        imported(tmp_path, path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        imported(tmp_path / "file", path)
