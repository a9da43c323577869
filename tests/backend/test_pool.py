"""Tasks to features by way of the cache: each picture is read once, upright and turned."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from seeded_networks import seeded_trunk

from backend import pool as pool_module
from backend.errors import PredictionError
from backend.feature_cache import FeatureCache
from backend.features import Extracted
from backend.images import PictureReader
from backend.label_studio import Task
from backend.pool import FeatureReader


class Pictures:
    """Made-up pictures by task number; 3, 13, 23 and so on cannot be read."""

    def __init__(self) -> None:
        self.read_numbers: list[int] = []

    def identity(self, data: dict[str, Any]) -> str:
        return f"picture {data['number']}"

    def read(self, task: Task) -> NDArray[np.uint8]:
        data = task.data
        if data["number"] % 10 == 3:
            raise PredictionError("No picture.", hint="Import it.")
        self.read_numbers.append(data["number"])
        return picture(data["number"])


def picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def reader(pictures: Pictures, tmp_path: Path) -> FeatureReader:
    trunk = seeded_trunk()
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    return FeatureReader(trunk, cache, cast("PictureReader", pictures))


def test_each_picture_is_read_once_in_each_position(
    reader: FeatureReader, pictures: Pictures
) -> None:
    tasks = [Task(number, {"number": number}) for number in range(4)]
    for turned in (False, True, False, True):
        pool = reader.pool(tasks, mode="auto", turned=turned)
        assert pool.is_readable.tolist() == [True, True, True, False]
        shown = picture(1)[::-1, ::-1] if turned else picture(1)
        expected = reader.trunk.extract(np.ascontiguousarray(shown)[np.newaxis], mode="rgb")
        np.testing.assert_array_equal(pool.features[1], expected.features[0])
        assert not pool.features[3].any()
    assert sorted(pictures.read_numbers) == [0, 0, 1, 1, 2, 2]


def test_picture_overwritten_just_after_it_was_read_is_read_again(
    reader: FeatureReader, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = 1

    def read(_task: Task) -> NDArray[np.uint8]:
        nonlocal shown
        read_now = picture(shown)
        shown = 2
        return read_now

    monkeypatch.setattr(pictures, "read", read)
    monkeypatch.setattr(pictures, "identity", lambda _data: f"picture as of {shown}")
    tasks = [Task(1, {})]
    for number in (1, 2):
        expected = reader.trunk.extract(picture(number)[np.newaxis], mode="rgb").features
        np.testing.assert_array_equal(reader.pool(tasks, mode="auto").features, expected)


def test_maps_that_are_missing_are_made_again(reader: FeatureReader, tmp_path: Path) -> None:
    """As in the cache of an earlier release, which has features only, or where room was made."""
    tasks = [Task(number, {"number": number}) for number in range(4)]
    reader.pool(tasks, mode="auto")
    before, found = reader.maps(tasks, mode="auto")
    assert found.tolist() == [True, True, True, False]
    (path,) = tmp_path.glob("*/features.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM maps WHERE id > 1")
    again, found = reader.maps(tasks, mode="auto")
    assert found.tolist() == [True, True, True, False]
    assert before.values[:3].any(axis=1).all()
    np.testing.assert_array_equal(again.values, before.values)
    np.testing.assert_array_equal(again.scales, before.scales)


def test_turned_crops_have_no_maps_stored(reader: FeatureReader, tmp_path: Path) -> None:
    """They are learned from; no card shows them."""
    tasks = [Task(number, {"number": number}) for number in range(3)]
    reader.pool(tasks, mode="auto")
    reader.pool(tasks, mode="auto", turned=True)
    (path,) = tmp_path.glob("*/features.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM features").fetchone()
        assert count == 6
        (count,) = connection.execute("SELECT count(*) FROM maps").fetchone()
        assert count == 3


def test_unreadable_pictures_are_told_in_one_line(
    reader: FeatureReader, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [Task(number, {"number": number}) for number in (1, 3, 13, 23)]
    reader.pool(tasks, mode="auto")
    reader.maps(tasks, mode="auto")
    (record,) = caplog.records
    told = "3 of 4 pictures cannot be read, the first of task 3: No picture. Import it."
    assert record.getMessage() == told


def test_large_pictures_are_taken_a_few_at_a_time(
    reader: FeatureReader, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = []
    extract = reader.trunk.extract

    def counting(pixels: NDArray[np.uint8], *, mode: str) -> Extracted:
        at_once.append(len(pixels))
        return extract(pixels, mode=mode)

    monkeypatch.setattr(reader.trunk, "extract", counting)
    monkeypatch.setattr(pool_module, "CHUNK_BYTES", 2 * picture(0).nbytes)
    pool = reader.pool([Task(number, {"number": number}) for number in range(8)], mode="auto")
    assert at_once == [2, 2, 2, 1]
    assert pool.is_readable.tolist() == [number != 3 for number in range(8)]


def test_another_way_of_reading_pictures_reads_them_anew(
    reader: FeatureReader, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.pool([Task(1, {"number": 1})], mode="auto")
    monkeypatch.setattr(pool_module, "PICTURE_RECIPE", "another")
    reader.pool([Task(1, {"number": 1})], mode="auto")
    assert pictures.read_numbers == [1, 1]


def test_damaged_record_is_computed_anew(
    reader: FeatureReader, pictures: Pictures, tmp_path: Path
) -> None:
    tasks = [Task(number, {"number": number}) for number in range(3)]
    before = reader.pool(tasks, mode="auto")
    (file,) = tmp_path.glob("*/features.sqlite")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE features SET payload = zeroblob(length(payload)) WHERE id = 2")
    after = reader.pool(tasks, mode="auto")
    assert pictures.read_numbers == [0, 1, 2, 1]
    assert after.is_readable.all()
    np.testing.assert_array_equal(after.features[[0, 2]], before.features[[0, 2]])
    np.testing.assert_allclose(after.features[1], before.features[1], rtol=1e-2, atol=1e-3)
    assert reader.pool(tasks, mode="auto").is_readable.all()
    assert len(pictures.read_numbers) == 4
