"""What a new version costs, Label Studio apart: training, the queue's order, cards, and the cache.

The features are synthetic: there are no 100,000 real cells here. Everything else is the product's.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from backend.cards import render_card
from backend.compact_maps import CompactMaps
from backend.feature_cache import FeatureCache, content_key
from backend.features import Extracted, Trunk
from backend.images import PictureReader
from backend.label_studio import LabelStudioClient, Task
from backend.pool import PICTURE_RECIPE, FeatureReader
from backend.registry import Version
from backend.rescoring import prediction_rows, rescore
from backend.settings import ProjectParameters
from backend.training import MOST_UNLABELLED, TrainingSettings, fit
from backend.training_set import Snapshot
from benchmarks.timing import PeakMemory, seconds
from converters.crops import ReadOptions
from converters.label_config import TEMPLATE_PATH, read_label_config
from converters.reading import iter_crops
from converters.rendering import model_input
from converters.sample import write_sample_crops

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

N_LABELS = 200
LABEL_CONFIG = read_label_config(TEMPLATE_PATH.read_text())
N_CLASSES = len(LABEL_CONFIG.classes)
NO_LIMIT = 10**12
# Labels of the trainings, one after the other; shorter ones again after the longest, since the
# machine may be slower by then.
RETRAINED = (200, 200, 2_000, 2_000, 20_000, 2_000, 200, 200)
FILL = 1000  # crops that are put into a cache at once


def measure_versions(trunk: Trunk, *, full: bool) -> Iterator[tuple[str, float]]:
    """All numbers by name, one after the other as they are measured.

    Args:
        trunk: as the product loads it.
        full: whether to rescore 100,000 crops, too.
    """
    yield from retraining_numbers(trunk)
    if full:
        with rescoring(trunk, n_crops=100_000) as rescore_pool:
            yield "rescore_s_100k", (elapsed_s := seconds(rescore_pool, repetitions=1))
        yield "rescore_crops_s_100k", 100_000 / elapsed_s
    yield from card_numbers()
    yield from cache_numbers(trunk)


def retraining_numbers(trunk: Trunk) -> Iterator[tuple[str, float]]:
    """Seconds and memory of a training on all labels of a pool, in both views.

    Medians of three, of the longest a single one.
    """
    elapsed_s: dict[int, list[float]] = {n_labels: [] for n_labels in RETRAINED}
    added_mb: dict[int, float] = {}
    unlabelled, _ = synthetic_features(MOST_UNLABELLED, trunk.feature_dim, seed=2)
    for n_labels in RETRAINED:
        features, labels = synthetic_features(n_labels, trunk.feature_dim)
        turned, _ = synthetic_features(n_labels, trunk.feature_dim, seed=1)
        groups = [str(row // 10) for row in range(n_labels)]
        with PeakMemory() as memory:
            started = time.perf_counter()
            fit(
                features,
                labels,
                groups,
                n_classes=N_CLASSES,
                settings=TrainingSettings(),
                pool_features=features,
                turned_features=turned,
                unlabelled_features=unlabelled,
                device=trunk.device,
            )
            elapsed_s[n_labels].append(time.perf_counter() - started)
        # The most of them: memory that was freed before, such as the features of the turn before,
        # is taken again without adding any.
        added_mb[n_labels] = max(added_mb.get(n_labels, 0.0), memory.added_mb)
    elapsed_s[200].pop(0)  # what the first training does once is no part of the others
    retrain_s = {n_labels: median(times) for n_labels, times in elapsed_s.items()}
    for n_labels, median_s in retrain_s.items():
        yield f"retrain_s_{n_labels}", median_s
        yield f"retrain_mb_{n_labels}", added_mb[n_labels]
    yield "retrain_cost_per_label_20000_over_2000", retrain_s[20_000] / retrain_s[2_000] / 10


@contextmanager
def rescoring(trunk: Trunk, *, n_crops: int) -> Iterator[Callable[[], None]]:
    """A task: from those of a pool, all in the cache, to the rows that Label Studio imports."""
    with tempfile.TemporaryDirectory() as folder:
        reader, snapshot = _cached_project(Path(folder), trunk, n_crops)
        known = reader.pool(snapshot.tasks[:N_LABELS], mode="auto")
        assert known.is_readable.all()  # or pictures would be read instead of the cache
        labels = np.array([snapshot.labels[task.id] for task in known.tasks])
        settings = TrainingSettings()
        groups = ["0"] * N_LABELS
        head = fit(known.features, labels, groups, n_classes=N_CLASSES, settings=settings).head
        parameters = ProjectParameters()
        version = Version(
            version="cellai-0001",
            project_id=snapshot.project_id,
            classes=LABEL_CONFIG.classes,
            n_labels=N_LABELS,
            labels_digest="",
            trunk_id=reader.trunk.trunk_id,
            parameters=parameters.model_dump(),
            created_at="",
        )
        turns = count()

        def rescore_pool() -> None:
            # No version meets as many cells as the one before, so what is prepared for one number
            # of them, such as compiled products, is no help with the next.
            some = replace(snapshot, tasks=snapshot.tasks[next(turns) :])
            pool = reader.pool(some.tasks, mode="auto")
            rescored = rescore(some, pool, version, head, parameters=parameters, seed=0)
            for _ in prediction_rows(some, pool, rescored, present=()):
                pass

        yield rescore_pool


def card_numbers() -> Iterator[tuple[str, float]]:
    """Time and size of one card, its heat made already."""
    rng = np.random.default_rng(0)
    cell = rng.integers(0, 256, (96, 96, 3), np.uint8)
    heat = rng.random((12, 12), np.float32)
    probabilities = np.full(N_CLASSES, 1 / N_CLASSES, np.float32)

    def card() -> str:
        return render_card(
            cell=cell,
            heat=heat,
            classes=LABEL_CONFIG.classes,
            probabilities=probabilities,
            uncertainty=1.0,
            model_version="cellai-0001",
            n_labels=N_LABELS,
        )

    yield "card_ms", 1e3 * seconds(card, repetitions=50)
    yield "card_bytes", len(card().encode())


def cache_numbers(trunk: Trunk) -> Iterator[tuple[str, float]]:
    """Disk and memory per crop, and what opening and reading a cache of 100,000 crops takes."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "sample.seg")
        write_sample_crops(source, n_cells=100, seed=0)
        cache = FeatureCache(Path(folder), trunk, max_bytes=NO_LIMIT)
        crops = iter_crops([source], options=ReadOptions())
        pixels = np.stack([model_input(crop) for crop in crops])
        keys = [content_key(picture, mode="both") for picture in pixels]
        cache.put_many(keys, trunk.extract(pixels, mode="both"))
        used = sum(path.stat().st_size for path in Path(folder).rglob("*.sqlite*"))
        yield "cache_kb_per_crop", used / 1e3 / len(keys)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), trunk, max_bytes=NO_LIMIT)
        keys = _fill(cache, trunk, n_crops=100_000)

        def open_it() -> FeatureCache:
            return FeatureCache(Path(folder), trunk, max_bytes=NO_LIMIT)

        with PeakMemory() as memory:
            yield "cache_open_ms_100k", 1e3 * seconds(open_it)
        yield "cache_open_mb_100k", memory.added_mb
        with PeakMemory() as memory:
            cache.get_features(keys[:10_000])
        yield "cache_memory_kb_per_crop", 1e3 * memory.added_mb / 10_000
        yield "cache_read_s_10k", seconds(lambda: cache.get_features(keys[:10_000]), repetitions=3)


def synthetic_features(
    n_crops: int, feature_dim: int, *, seed: int = 0
) -> tuple[FloatArray, IntArray]:
    """Overlapping classes in the product's feature dimension: (N, D) and (N,).

    Args:
        n_crops: N.
        feature_dim: D.
        seed: of the noise; the labels of one N are always the same.
    """
    labels = np.random.default_rng(n_crops).integers(0, N_CLASSES, n_crops)
    centres = np.random.default_rng(0).standard_normal((N_CLASSES, feature_dim), np.float32)
    noise = np.random.default_rng([n_crops, seed]).standard_normal(
        (n_crops, feature_dim), np.float32
    )
    return 0.1 * centres[labels] + noise, labels.astype(np.int64)


def _cached_project(folder: Path, trunk: Trunk, n_crops: int) -> tuple[FeatureReader, Snapshot]:
    """A project whose pictures, empty files, have been seen; the first tasks have labels."""
    pictures = PictureReader(folder, LabelStudioClient("http://127.0.0.1", "unused"))
    cache = FeatureCache(folder / "cache", trunk, max_bytes=NO_LIMIT)
    (folder / "pool").mkdir()
    tasks = []
    for number in range(n_crops):
        (folder / "pool" / f"{number}.png").touch()
        tasks.append(Task(number, {"image": f"/data/local-files/?d=pool/{number}.png"}))
    keys = _fill(cache, trunk, n_crops=n_crops)
    identities = [f"{PICTURE_RECIPE} {pictures.identity(task.data)}" for task in tasks]
    cache.remember(identities, keys, mode="rgb")
    _, classes = synthetic_features(FILL, trunk.feature_dim)
    snapshot = Snapshot(
        project_id=1,
        label_config=LABEL_CONFIG,
        tasks=tasks,
        labels={task.id: int(classes[task.id]) for task in tasks[:N_LABELS]},
        model_version="",
    )
    return FeatureReader(trunk, cache, pictures), snapshot


def _fill(cache: FeatureCache, trunk: Trunk, *, n_crops: int) -> list[str]:
    """Store so many crops, with hardly any maps: real ones would take 4 GB for 100,000."""
    rng = np.random.default_rng(0)
    keys = [rng.bytes(32).hex() for _ in range(n_crops)]
    for start in range(0, n_crops, FILL):
        some = keys[start : start + FILL]
        features, _ = synthetic_features(FILL, trunk.feature_dim, seed=start)
        maps = CompactMaps.empty(len(some), ((1, 1, 1),))
        cache.put_many(some, Extracted(features[: len(some)], maps))
    return keys
