"""Features and the cache: deterministic, by content, damaged or stale records count as missing."""

import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seeded_networks import needs_mkl, seeded_tensors, seeded_trunk

from backend.compact_maps import CompactMaps
from backend.feature_cache import FeatureCache, content_key
from backend.features import Extracted, Trunk, fit_to_input
from backend.networks import INPUT_PX, build_network


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return seeded_trunk()


@pytest.fixture(scope="module")
def pixels() -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def filled_cache(
    folder: Path, trunk: Trunk, pixels: NDArray[Any]
) -> tuple[FeatureCache, list[str], Path]:
    """A cache of some crops, their keys and its file."""
    cache = FeatureCache(folder, trunk, max_bytes=10**9)
    keys = [content_key(crop, mode="both") for crop in pixels]
    cache.put_many(keys, trunk.extract(pixels, mode="both"))
    (path,) = folder.glob("*/features.sqlite")
    return cache, keys, path


def test_extraction_is_the_same_each_time(trunk: Trunk, pixels: NDArray[Any]) -> None:
    together = trunk.extract(pixels, mode="both")
    assert together.features.shape == (3, trunk.feature_dim)
    assert [tuple(tap.shape) for tap in together.maps.restored()] == [
        (3, 144, 256),
        (3, 144, 512),
        (3, 36, 512),
    ]
    again = trunk.extract(pixels, mode="both")
    np.testing.assert_array_equal(together.features, again.features)
    assert trunk.extract(pixels[:0], mode="rgb").features.shape == (0, trunk.feature_dim)


def test_a_crop_is_the_same_in_any_batch(trunk: Trunk) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), np.uint8)
    together = trunk.extract(pixels, mode="both")
    for n in (1, 2, 3, 4, 9, 33):
        some = trunk.extract(pixels[-n:], mode="both")
        np.testing.assert_array_equal(some.features, together.features[-n:])
        np.testing.assert_array_equal(some.maps.values, together.maps.values[-n:])


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
    maps, found = reopened.get_maps([*keys, "00" * 32])
    assert found.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(maps.values[:3], extracted.maps.values)
    np.testing.assert_array_equal(maps.scales[:3], extracted.maps.scales)


def test_file_that_is_damaged_while_it_is_used_is_built_anew(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    """SQLite says so when the file is opened, before anything was read."""
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [content_key(crop, mode="both") for crop in pixels]
    extracted = trunk.extract(pixels, mode="both")
    cache.put_many(keys, extracted)
    (path,) = tmp_path.glob("*/features.sqlite")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(b"not what it was " * 1000)
    assert not cache.get_features(keys)[1].any()
    cache.put_many(keys, extracted)
    assert cache.get_features(keys)[1].all()


def test_damaged_record_counts_as_missing(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    cache, keys, path = filled_cache(tmp_path, trunk, pixels)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE features SET payload = zeroblob(length(payload)) WHERE key = ?",
            (bytes.fromhex(keys[1]),),
        )
        connection.execute(
            "UPDATE maps SET payload = zeroblob(length(payload)) WHERE key = ?",
            (bytes.fromhex(keys[2]),),
        )
    assert cache.get_features(keys)[1].tolist() == [True, False, True]
    assert cache.get_maps(keys)[1].tolist() == [True, True, False]


def test_destroyed_file_is_built_anew(trunk: Trunk, pixels: NDArray[Any], tmp_path: Path) -> None:
    _, keys, path = filled_cache(tmp_path, trunk, pixels)
    path.write_bytes(b"no database" * 1000)
    reopened = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    assert not reopened.get_features(keys)[1].any()
    reopened.put_many(keys, trunk.extract(pixels, mode="both"))
    assert reopened.get_features(keys)[1].all()


def other_taps() -> Trunk:
    network = build_network("vgg16")
    shallower = replace(network, taps=network.taps[:2], map_shapes=network.map_shapes[:2])
    return Trunk(
        shallower, seeded_tensors(network), device=torch.device("cpu"), precision=torch.float32
    )


@pytest.mark.parametrize(
    "other",
    [
        lambda: seeded_trunk(seed=1),
        lambda: seeded_trunk("vgg16_bn"),
        lambda: seeded_trunk(precision=torch.bfloat16),
        other_taps,
    ],
    ids=["weights", "network", "precision", "taps"],
)
def test_another_trunk_never_reads_these_records(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path, other: Callable[[], Trunk]
) -> None:
    _, keys, _ = filled_cache(tmp_path, trunk, pixels)
    assert not FeatureCache(tmp_path, other(), max_bytes=10**9).get_features(keys)[1].any()


@pytest.mark.parametrize(
    "changed",
    [
        ("backend.features.TRANSFORM", "another"),
        ("backend.features.FADING_SIGMA", 0.26),
        ("backend.features.AMPLITUDE_GAIN", 3.1),
        ("backend.features.INPUT_PX", 112),
        ("backend.pooling.RECIPE", "another"),
        pytest.param(("backend.winograd.RECIPE", "another"), marks=needs_mkl),
    ],
)
def test_another_way_to_the_features_never_reads_these_records(
    trunk: Trunk,
    pixels: NDArray[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, str | float],
) -> None:
    _, keys, _ = filled_cache(tmp_path, trunk, pixels)
    monkeypatch.setattr(*changed)
    assert not FeatureCache(tmp_path, seeded_trunk(), max_bytes=10**9).get_features(keys)[1].any()
    monkeypatch.undo()
    assert FeatureCache(tmp_path, seeded_trunk(), max_bytes=10**9).get_features(keys)[1].all()


@pytest.mark.parametrize("first_is_dense", [False, True])
def test_size_is_bounded_whatever_the_maps_take(
    trunk: Trunk, tmp_path: Path, first_is_dense: bool
) -> None:
    """Maps of zeros take an eighth of those without; the oldest go first, maps before features."""
    limit = 3_000_000
    cache = FeatureCache(tmp_path, trunk, max_bytes=limit)
    keys = []
    for number in range(1, 101):
        key, extracted = made_up(trunk, number)
        if first_is_dense == (number > 50):
            extracted.maps.values[:] = 0
        cache.put_many([key], extracted)
        keys.append(key)
    (path,) = tmp_path.glob("*/features.sqlite")
    with closing(sqlite3.connect(path)) as connection:
        ((stored,),) = connection.execute(
            "SELECT (SELECT sum(length(payload)) FROM features)"
            " + (SELECT sum(length(payload)) FROM maps)"
        )
    assert 0.8 * limit < stored < limit
    assert cache.get_features(keys)[1].all()
    kept = cache.get_maps(keys)[1]
    assert not kept[0]
    assert kept[-1]
    assert (np.diff(kept.astype(int)) >= 0).all()


def test_features_go_when_maps_are_not_enough(trunk: Trunk, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=300_000)
    keys = []
    for number in range(1, 101):
        key, extracted = made_up(trunk, number)
        cache.put_many([key], extracted)
        keys.append(key)
    found = cache.get_features(keys)[1]
    assert not found[0]
    assert found[-1]


def test_lower_limit_shortens_the_file_and_spares_other_trunks(
    trunk: Trunk, tmp_path: Path
) -> None:
    records = [made_up(trunk, number) for number in range(1, 101)]
    for key, extracted in records:
        FeatureCache(tmp_path, trunk, max_bytes=10**9).put_many([key], extracted)
    (path,) = tmp_path.glob("*/features.sqlite")
    limit = path.stat().st_size // 2
    other = tmp_path / "other" / "features.sqlite"
    other.parent.mkdir()
    other.write_bytes(bytes(100))
    key, extracted = records[-1]
    FeatureCache(tmp_path, trunk, max_bytes=limit).put_many([key], extracted)
    assert 0.9 * limit < path.stat().st_size < limit
    assert FeatureCache(tmp_path, trunk, max_bytes=limit - 200).get_features([key])[1].all()
    assert other.exists()


def test_deleted_cache_is_built_anew_while_it_is_used(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    cache, keys, _ = filled_cache(tmp_path / "features", trunk, pixels)
    extracted = trunk.extract(pixels, mode="both")
    for _ in range(2):
        cache.remember(["a picture"], keys[:1], mode="both")
        shutil.rmtree(tmp_path / "features")
        assert cache.known_keys(["a picture"], mode="both") == [None]
        assert not cache.get_features(keys)[1].any()
        assert not cache.get_maps(keys)[1].any()
        shutil.rmtree(tmp_path / "features")
        cache.put_many(keys, extracted)
        assert cache.get_features(keys)[1].all()


def test_maps_of_another_form_count_as_missing(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    cache, keys, path = filled_cache(tmp_path, trunk, pixels)
    with closing(sqlite3.connect(path)) as connection, connection:
        for key, payload in ((keys[0], b"short"), (keys[1], bytes(50_000))):
            connection.execute(
                "UPDATE maps SET payload = ?, checksum = ? WHERE key = ?",
                (payload, zlib.crc32(payload, 1), bytes.fromhex(key)),
            )
    maps, found = cache.get_maps(keys)
    assert found.tolist() == [False, False, True]
    assert not maps.values[:2].any()


def test_known_pictures_need_not_be_read(trunk: Trunk, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    cache.remember(["a|1|2"], ["ab" * 32], mode="both")
    assert cache.known_keys(["a|1|2", "a|1|3"], mode="both") == ["ab" * 32, None]
    assert cache.known_keys(["a|1|2"], mode="phase") == [None]


def test_known_pictures_are_bounded_on_the_disk(trunk: Trunk, tmp_path: Path) -> None:
    n_kept = 500
    cache = FeatureCache(tmp_path, trunk, max_bytes=n_kept * 2 * trunk.feature_dim)
    sizes = []
    for turn in range(20):
        names = [f"picture {turn} {number}" for number in range(n_kept)]
        cache.remember(names, ["ab" * 32] * n_kept, mode="both")
        assert None not in cache.known_keys(names, mode="both")
        sizes.append((tmp_path / "pictures.sqlite").stat().st_size)
    assert cache.known_keys(["picture 18 499"], mode="both") == [None]
    assert sizes[-1] < 1.5 * sizes[4]


def test_records_of_other_trunks_make_room_the_longest_unwritten_first(
    trunk: Trunk, pixels: NDArray[Any], tmp_path: Path
) -> None:
    others = [tmp_path / name for name in ("older", "newer")]
    for age, folder in zip((2000, 1000), others, strict=True):
        folder.mkdir()
        file = folder / "features.sqlite"
        file.write_bytes(bytes(1_000_000))
        os.utime(file, (time.time() - age,) * 2)
    keys = [content_key(crop, mode="both") for crop in pixels]
    extracted = trunk.extract(pixels, mode="both")
    for limit, left in ((10_000_000, others), (1_900_000, others[1:]), (900_000, [])):
        cache = FeatureCache(tmp_path, trunk, max_bytes=limit)
        cache.put_many(keys, extracted)
        assert [folder for folder in others if folder.exists()] == left
        assert sum(file.stat().st_size for file in tmp_path.glob("*/features.sqlite")) <= limit
        assert cache.get_features(keys)[1].all()


PATIENCE_S = 180  # a process of its own first loads torch


def made_up(trunk: Trunk, number: int) -> tuple[str, Extracted]:
    """A record all of whose values tell its number."""
    features = np.full((1, trunk.feature_dim), number, np.float32)
    maps = CompactMaps.empty(1, trunk.kept_shapes)
    maps.values[:] = 1
    maps.scales[:] = number
    return f"{number:064x}", Extracted(features, maps)


def write_on(folder: Path, count: int, *, n_readers: int = 0) -> None:
    """Runs in a process of its own; begins when the readers look."""
    trunk = seeded_trunk()
    cache = FeatureCache(folder, trunk, max_bytes=10**9)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob("reader-*"))) < n_readers:
        assert time.monotonic() < deadline
    for number in range(1, count + 1):
        key, extracted = made_up(trunk, number)
        cache.put_many([key], extracted)


def read_until_complete(folder: Path, count: int) -> int:
    """Runs in a process of its own; gives how often it saw some records, but not yet all."""
    cache = FeatureCache(folder, seeded_trunk(), max_bytes=10**9)
    keys = [f"{number:064x}" for number in range(1, count + 1)]
    deadline = time.monotonic() + PATIENCE_S
    (folder / f"reader-{os.getpid()}").touch()
    n_partial = 0
    while True:
        features, found = cache.get_features(keys)
        assert (features[found] == 1 + np.flatnonzero(found)[:, None]).all()
        assert found[: found.sum()].all()  # what was written first is there first
        if found.all():
            return n_partial
        n_partial += bool(found.any())
        assert time.monotonic() < deadline


def test_several_processes_read_while_one_writes(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        readers = [processes.submit(read_until_complete, tmp_path, 300) for _ in range(2)]
        processes.submit(write_on, tmp_path, 300, n_readers=2).result()
        assert all(reader.result() >= 1 for reader in readers)


def test_writer_killed_at_any_moment_leaves_whole_records(trunk: Trunk, tmp_path: Path) -> None:
    writer = get_context("spawn").Process(target=write_on, args=(tmp_path, 100_000), daemon=True)
    writer.start()
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [made_up(trunk, number)[0] for number in range(1, 2001)]
    deadline = time.monotonic() + PATIENCE_S
    while cache.get_features(keys)[1].sum() < 20:
        assert time.monotonic() < deadline
    writer.kill()
    writer.join()

    features, found = cache.get_features(keys)
    maps, also_found = cache.get_maps(keys)
    assert 20 <= found.sum() < len(keys)
    np.testing.assert_array_equal(found, also_found)
    assert (features[found] == 1 + np.flatnonzero(found)[:, None]).all()
    assert (maps.values[found] == 1).all()
    assert (maps.scales[found] == 1 + np.flatnonzero(found)[:, None]).all()
    key, extracted = made_up(trunk, 5000)
    cache.put_many([key], extracted)
    assert cache.get_features([key])[1].all()
