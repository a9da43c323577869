"""Features and the cache: deterministic, by content, damaged or stale records count as missing."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seeded_networks import seeded_trunk

from backend.feature_cache import FeatureCache, content_key
from backend.features import Trunk, fit_to_input
from backend.networks import INPUT_PX


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return seeded_trunk()


@pytest.fixture(scope="module")
def pixels() -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_extraction_is_the_same_each_time_and_in_any_batch(
    trunk: Trunk, pixels: NDArray[Any]
) -> None:
    together = trunk.extract(pixels, mode="both")
    assert together.features.shape == (3, trunk.feature_dim)
    assert together.activations.shape == (3, *trunk.activation_shape)
    alone = trunk.extract(pixels[1:2], mode="both")
    np.testing.assert_allclose(together.features[1], alone.features[0], rtol=1e-2, atol=1e-3)
    again = trunk.extract(pixels, mode="both")
    np.testing.assert_array_equal(together.features, again.features)
    assert trunk.extract(pixels[:0], mode="rgb").features.shape == (0, trunk.feature_dim)


@pytest.mark.parametrize("size_px", [32, 95, 96, 97, 200])
def test_any_size_fits_the_input(size_px: int) -> None:
    assert fit_to_input(torch.rand(2, 3, size_px, size_px)).shape == (2, 3, INPUT_PX, INPUT_PX)


def test_round_trip_and_missing(trunk: Trunk, pixels: NDArray[Any], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [content_key(crop, mode="both") for crop in pixels]
    assert len(set(keys) | {content_key(pixels[0], mode="phase")}) == 4
    extracted = trunk.extract(pixels, mode="both")
    cache.put_many(keys, extracted)
    reopened = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    features, found = reopened.get_features([*keys, "00" * 32])
    assert found.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(features[:3], extracted.features)
    activations, found = reopened.get_activations(keys)
    assert found.all()
    np.testing.assert_array_equal(activations, extracted.activations)


def test_damaged_record_counts_as_missing(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [content_key(crop, mode="both") for crop in pixels]
    cache.put_many(keys, trunk.extract(pixels, mode="both"))
    (path,) = tmp_path.glob("*/features.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE features SET payload = zeroblob(length(payload)) WHERE key = ?",
            (bytes.fromhex(keys[1]),),
        )
    assert cache.get_features(keys)[1].tolist() == [True, False, True]


def test_destroyed_file_is_built_anew(trunk: Trunk, pixels: NDArray[Any], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [content_key(crop, mode="both") for crop in pixels]
    cache.put_many(keys, trunk.extract(pixels, mode="both"))
    (path,) = tmp_path.glob("*/features.sqlite")
    path.write_bytes(b"no database" * 1000)
    reopened = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    assert not reopened.get_features(keys)[1].any()
    reopened.put_many(keys, trunk.extract(pixels, mode="both"))
    assert reopened.get_features(keys)[1].all()


def test_other_weights_never_read_these_records(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    keys = [content_key(crop, mode="both") for crop in pixels]
    FeatureCache(tmp_path, trunk, max_bytes=10**9).put_many(
        keys, trunk.extract(pixels, mode="both")
    )
    other = FeatureCache(tmp_path, seeded_trunk(seed=1), max_bytes=10**9)
    assert not other.get_features(keys)[1].any()


def test_size_is_bounded(trunk: Trunk, pixels: NDArray[Any], tmp_path: Path) -> None:
    record = 2 * (trunk.feature_dim + int(np.prod(trunk.activation_shape)))
    cache = FeatureCache(tmp_path, trunk, max_bytes=2 * record)
    keys = [content_key(crop, mode="both") for crop in pixels]
    for key, crop in zip(keys, pixels, strict=True):
        cache.put_many([key], trunk.extract(crop[np.newaxis], mode="both"))
    assert cache.get_features(keys)[1][-1]
    kept = cache.get_activations(keys)[1]
    assert not kept[0]
    assert kept[-1]


def test_known_pictures_need_not_be_read(trunk: Trunk, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    cache.remember(["a|1|2"], ["ab" * 32], mode="both")
    assert cache.known_keys(["a|1|2", "a|1|3"], mode="both") == ["ab" * 32, None]
    assert cache.known_keys(["a|1|2"], mode="phase") == [None]
