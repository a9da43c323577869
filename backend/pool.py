"""Tasks of a project with their features: the arrays that training and rescoring work on.

Pictures are read, and the trunk runs, only for what the cache does not hold.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.compact_maps import CompactMaps
from backend.errors import PredictionError
from backend.feature_cache import FeatureCache, content_key
from backend.features import Extracted, Trunk, load_trunk
from backend.images import PictureReader, picture_reader
from backend.label_studio import LabelStudioClient, Task
from backend.settings import Settings
from backend.weights import resolve_weights

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]
Progress = Callable[[int, int], None]
_Read = tuple[int, str | None, UInt8Array]  # row, identity and square picture

# Crops in memory at once while features are computed, and their bytes; stored after each.
CHUNK = 64
CHUNK_BYTES = 64_000_000
PICTURE_RECIPE = "1"  # raise when the way from a file to a square of pixels changes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Features of N tasks.

    Attributes:
        tasks: the tasks, in the order of the rows.
        features: float32 (N, D); zero where `is_readable` is False.
        is_readable: bool (N,), False where the picture cannot be read.
    """

    tasks: Sequence[Task]
    features: FloatArray
    is_readable: BoolArray


class FeatureReader:
    """Pictures of tasks to features, by way of the cache."""

    def __init__(self, trunk: Trunk, cache: FeatureCache, pictures: PictureReader) -> None:
        self.trunk = trunk
        self._cache = cache
        self._pictures = pictures

    def pool(
        self,
        tasks: Sequence[Task],
        *,
        mode: str,
        turned: bool = False,
        on_progress: Progress | None = None,
    ) -> Pool:
        """Features of the tasks; one whose picture cannot be read is marked, not fatal.

        Args:
            tasks: N tasks.
            mode: the project's mode; see `input_mode`.
            turned: of the pictures turned by half a circle.
            on_progress: called with (done, N) while features are computed.
        """
        refused: dict[int, PredictionError] = {}
        keys = self._keys(tasks, mode, turned=turned)
        features, found = self._cache.get_features([key or _NO_KEY for key in keys])
        missing = np.flatnonzero(~found)
        for start in range(0, len(missing), CHUNK):
            if on_progress is not None:
                on_progress(len(tasks) - len(missing) + start, len(tasks))
            chunk = missing[start : start + CHUNK]
            for row, extracted in self._extract(tasks, chunk, mode, turned=turned, refused=refused):
                features[row] = extracted.features[0]
                found[row] = True
        _tell(refused, n_tasks=len(tasks))
        return Pool(tasks, features, found)

    def can_read(self, task: Task) -> bool:
        """Whether the task's picture can be read by now."""
        try:
            self._pictures.read(task)
        except PredictionError:
            return False
        return True

    def maps(self, tasks: Sequence[Task], *, mode: str) -> tuple[CompactMaps, BoolArray]:
        """Maps of a few tasks and which are readable, bool (N,).

        Those that are not were told by the `pool` before.
        """
        keys = self._keys(tasks, mode)
        maps, found = self._cache.get_maps([key or _NO_KEY for key in keys])
        for row, extracted in self._extract(tasks, np.flatnonzero(~found), mode, refused={}):
            maps.put(row, extracted.maps)
            found[row] = True
        return maps, found

    def _keys(self, tasks: Sequence[Task], mode: str, *, turned: bool = False) -> list[str | None]:
        """Content keys of pictures that were seen before, None for the others."""
        keys: list[str | None] = [None] * len(tasks)
        for used, rows in _rows_by(input_mode(task.data, mode) for task in tasks).items():
            identities: list[str] = []
            readable: list[int] = []
            for row in rows:
                identity = self._identity(tasks[row], turned=turned)
                if identity is not None:
                    identities.append(identity)
                    readable.append(row)
            known = self._cache.known_keys(identities, mode=used)
            for row, key in zip(readable, known, strict=True):
                keys[row] = key
        return keys

    def _identity(self, task: Task, *, turned: bool) -> str | None:
        """None where reading will fail, too, and say why."""
        try:
            identity = f"{PICTURE_RECIPE} {self._pictures.identity(task.data)}"
        except PredictionError:
            return None
        return f"{identity} turned" if turned else identity

    def _extract(
        self,
        tasks: Sequence[Task],
        rows: Sequence[int] | NDArray[np.intp],
        mode: str,
        *,
        turned: bool = False,
        refused: dict[int, PredictionError],
    ) -> Iterator[tuple[int, Extracted]]:
        """Run the trunk on the pictures of some tasks and store the result.

        `refused` is told why a picture cannot be read, by the number of its task.
        """
        for read in _parts(self._read(tasks, rows, turned=turned, refused=refused)):
            kinds = _rows_by(
                (input_mode(tasks[row].data, mode), picture.shape) for row, _, picture in read
            )
            for (used, _), members in kinds.items():
                group = [read[member] for member in members]
                pixels = np.stack([picture for *_, picture in group])
                extracted = self.trunk.extract(pixels, mode=used)
                keys = [content_key(picture, mode=used) for picture in pixels]
                # Turned crops are only learned from.
                self._cache.put_many(keys, extracted, with_maps=not turned)
                seen = {
                    identity: key
                    for (_, identity, _), key in zip(group, keys, strict=True)
                    if identity is not None
                }
                self._cache.remember(list(seen), list(seen.values()), mode=used)
                for at, (row, *_) in enumerate(group):
                    yield row, extracted.of_crop(at)

    def _read(
        self,
        tasks: Sequence[Task],
        rows: Sequence[int] | NDArray[np.intp],
        *,
        turned: bool,
        refused: dict[int, PredictionError],
    ) -> Iterator[_Read]:
        for row in rows:
            # Before the picture is read: one that is overwritten meanwhile is another afterwards.
            identity = self._identity(tasks[row], turned=turned)
            try:
                picture = _square(self._pictures.read(tasks[row]))
            except PredictionError as error:
                refused[tasks[row].id] = error
                continue
            picture = np.ascontiguousarray(picture[::-1, ::-1]) if turned else picture
            yield int(row), identity, picture


def load_feature_reader(settings: Settings, client: LabelStudioClient) -> FeatureReader:
    """Find the weights, load the trunk and open the cache.

    Raises:
        WeightsError: no usable weights.
    """
    weights = resolve_weights(
        settings.weights, cache_dir=settings.data_dir / "weights", network=settings.trunk
    )
    trunk = load_trunk(weights, network=settings.trunk)
    cache = FeatureCache(
        settings.data_dir / "features", trunk, max_bytes=int(settings.feature_cache_gb * 1e9)
    )
    return FeatureReader(trunk, cache, picture_reader(settings, client))


def input_mode(task_data: Mapping[str, Any], mode: str) -> str:
    """What the trunk looks at for one task.

    A task with a channel stack (`model_input` beside `phase` or `amplitude`) follows the
    project's mode as far as its source has the channel; anything else is a colour picture.

    Args:
        task_data: the task's data.
        mode: "auto", "phase", "amplitude", "both" or "rgb".

    Returns:
        "phase", "amplitude", "both" or "rgb".
    """
    if not task_data.get("model_input") or mode == "rgb":
        return "rgb"
    has_phase, has_amplitude = bool(task_data.get("phase")), bool(task_data.get("amplitude"))
    if not (has_phase or has_amplitude):
        return "rgb"
    if has_phase and has_amplitude:
        return "both" if mode == "auto" else mode
    return "phase" if has_phase else "amplitude"


# Key of pictures never seen: the SHA-256 of nothing cannot be a picture's.
_NO_KEY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _tell(refused: Mapping[int, PredictionError], *, n_tasks: int) -> None:
    """One line however many pictures are gone."""
    if refused:
        task_id, error = next(iter(refused.items()))
        _log.warning(
            "%d of %d pictures cannot be read, the first of task %d: %s",
            len(refused),
            n_tasks,
            task_id,
            error,
            extra={"task_id": task_id},
        )


def _parts(pictures: Iterator[_Read]) -> Iterator[list[_Read]]:
    """The pictures in parts of about CHUNK_BYTES."""
    part: list[_Read] = []
    n_bytes = 0
    for read in pictures:
        part.append(read)
        n_bytes += read[-1].nbytes
        if n_bytes >= CHUNK_BYTES:
            yield part
            part, n_bytes = [], 0
    yield part


def _rows_by(kinds: Iterator[Any]) -> dict[Any, list[int]]:
    rows: dict[Any, list[int]] = {}
    for row, kind in enumerate(kinds):
        rows.setdefault(kind, []).append(row)
    return rows


def _square(pixels: UInt8Array) -> UInt8Array:
    """Pad the shorter side by repeating the border, so that the cell is not distorted."""
    height, width, _ = pixels.shape
    lacking_h, lacking_w = max(0, width - height), max(0, height - width)
    pads = (
        (lacking_h // 2, lacking_h - lacking_h // 2),
        (lacking_w // 2, lacking_w - lacking_w // 2),
    )
    return np.pad(pixels, (*pads, (0, 0)), mode="edge")
