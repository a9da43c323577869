"""Hostile and odd pictures, in an import and in a task: the right pixels, or one clear sentence."""

import resource
from pathlib import Path

import numpy as np
import pytest
from hostile_pictures import GREY, hostile, unusual

from backend.errors import PredictionError
from backend.images import PictureReader, decode
from backend.label_studio import LabelStudioClient, Task
from converters.crops import ReadOptions
from converters.pictures import read_picture
from converters.problems import Problems
from converters.reading import iter_crops

# JPEG and CMYK are not exact.
TOLERANCE = 12
MAX_GROWTH_KIB = 600 * 1024
HOSTILE, UNUSUAL = hostile(), unusual()


def reader(folder: Path) -> PictureReader:
    return PictureReader(folder, LabelStudioClient("http://127.0.0.1:1", "token"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_left_out_of_an_import(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problems = Problems()
    assert not list(iter_crops([tmp_path], options=ReadOptions(), problems=problems))
    [problem] = problems
    assert problem.reason.endswith(": skipped")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_of_a_task_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(PredictionError, match="cannot be read"):
        reader(tmp_path).read(Task(1, {"image": f"/data/local-files/?d={name}"}))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_of_a_task_are_what_a_person_sees(name: str) -> None:
    pixels = decode(UNUSUAL[name])
    assert pixels.shape == (20, 30, 3)
    assert np.abs(pixels[..., 0].astype(int) - GREY).mean() < TOLERANCE


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_of_an_import_are_what_a_person_sees(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(UNUSUAL[name])
    pixels, _ = read_picture(tmp_path / name)
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    grey = grey / 257 if grey.dtype == np.uint16 else grey
    assert grey.shape == (20, 30)
    assert np.abs(grey.astype(float) - GREY).mean() < TOLERANCE
