"""Labelled files to features, read and computed exactly as the product does it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.feature_cache import FeatureCache, content_key
from backend.features import Trunk, has_mask
from converters.crops import Crop, ReadOptions
from converters.errors import EmptySourceError
from converters.reading import iter_crops
from converters.rendering import model_input

CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """The labelled crops of one source.

    Attributes:
        name: of the data set.
        features: float32 (N, D).
        turned_features: of the crops turned by half a circle, float32 (N, D).
        labels: class index, int64 (N,).
        groups: field or image of each crop; never split between pool and test.
        classes: names in the order of the index.
        keys: content keys of the crops in the feature cache.
        has_mask: whether the trunk saw an outline of the cell, bool (N,).
        masks: bool (N, S, S), None where a crop has none or sizes differ.
    """

    name: str
    features: NDArray[np.float32]
    turned_features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    has_mask: NDArray[np.bool_]
    masks: NDArray[np.bool_] | None

    def rows(self, chosen: NDArray[np.int64]) -> "LabelledFeatures":
        """The same data set with some of its crops."""
        return replace(
            self,
            features=self.features[chosen],
            turned_features=self.turned_features[chosen],
            labels=self.labels[chosen],
            groups=self.groups[chosen],
            keys=tuple(self.keys[row] for row in chosen),
            has_mask=self.has_mask[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


def read_labelled_features(
    path: Path, trunk: Trunk, cache: FeatureCache, *, name: str
) -> LabelledFeatures:
    """Features of all labelled crops of a file or folder.

    Args:
        path: anything that the converters read.
        trunk: computes the features.
        cache: holds them between runs.
        name: of the data set.

    Raises:
        SourceError: the source cannot be used, or none of its crops has a label.
    """
    crops = (crop for crop in iter_crops([path], options=ReadOptions()) if crop.label is not None)
    features: list[NDArray[np.float32]] = []
    turned_features: list[NDArray[np.float32]] = []
    labels: list[str] = []
    groups: list[str] = []
    keys: list[str] = []
    seen_with_mask: list[bool] = []
    masks: list[NDArray[np.bool_] | None] = []
    for chunk in _chunks(crops):
        mode = _mode(chunk[0])
        pixels = np.stack([model_input(crop) for crop in chunk])
        chunk_features, chunk_keys = _features(pixels, mode, trunk, cache)
        features.append(chunk_features)
        turned = np.ascontiguousarray(pixels[:, ::-1, ::-1])
        turned_features.append(_features(turned, mode, trunk, cache, with_maps=False)[0])
        keys.extend(chunk_keys)
        seen_with_mask.extend([has_mask(mode)] * len(chunk))
        labels.extend(str(crop.label) for crop in chunk)
        groups.extend(crop.group for crop in chunk)
        masks.extend(crop.mask for crop in chunk)
    if not labels:
        raise EmptySourceError(f"No crop in {path} has a label.", hint="Give a file with labels.")
    classes, label_idx = np.unique(np.array(labels), return_inverse=True)
    known_masks = [mask for mask in masks if mask is not None]
    has_masks = len(known_masks) == len(masks) and len({mask.shape for mask in known_masks}) == 1
    return LabelledFeatures(
        name=name,
        features=np.concatenate(features),
        turned_features=np.concatenate(turned_features),
        labels=label_idx.astype(np.int64),
        groups=np.array(groups),
        classes=tuple(str(label) for label in classes),
        keys=tuple(keys),
        has_mask=np.array(seen_with_mask),
        masks=np.stack(known_masks) if has_masks else None,
    )


def _chunks(crops: Iterator[Crop]) -> Iterator[list[Crop]]:
    while chunk := list(islice(crops, CHUNK)):
        yield chunk


def _features(
    pixels: NDArray[np.uint8],
    mode: str,
    trunk: Trunk,
    cache: FeatureCache,
    *,
    with_maps: bool = True,
) -> tuple[NDArray[np.float32], list[str]]:
    """Features and keys of crops (n, S, S, 3) of one mode."""
    keys = [content_key(picture, mode=mode) for picture in pixels]
    features, found = cache.get_features(keys)
    if not found.all():
        missing = np.flatnonzero(~found)
        extracted = trunk.extract(pixels[missing], mode=mode)
        cache.put_many([keys[row] for row in missing], extracted, with_maps=with_maps)
        features[missing] = extracted.features
    return features, keys


def _mode(crop: Crop) -> str:
    if crop.phase is None and crop.amplitude is None:
        return "rgb"
    if crop.phase is None:
        return "amplitude"
    return "phase" if crop.amplitude is None else "both"
