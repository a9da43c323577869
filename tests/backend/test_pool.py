"""Tasks to features by way of the cache: each picture is read once, upright and turned."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from seeded_networks import seeded_trunk

from backend.errors import PredictionError
from backend.feature_cache import FeatureCache
from backend.images import PictureReader
from backend.label_studio import Task
from backend.pool import FeatureReader


class Pictures:
    """Made-up pictures by task number; number 3 cannot be read."""

    def __init__(self) -> None:
        self.read_numbers: list[int] = []

    def identity(self, data: dict[str, Any]) -> str:
        return f"picture {data['number']}"

    def read(self, task: Task) -> NDArray[np.uint8]:
        data = task.data
        if data["number"] == 3:
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
        np.testing.assert_allclose(pool.features[1], expected.features[0], rtol=1e-2, atol=1e-3)
        assert not pool.features[3].any()
    assert sorted(pictures.read_numbers) == [0, 0, 1, 1, 2, 2]
