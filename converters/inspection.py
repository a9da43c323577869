"""What `cellai inspect` says about a source, without importing it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.crops import ReadOptions
from converters.errors import SourceError
from converters.layouts import Layout, recognise
from converters.pictures import is_picture_source
from converters.problems import Problems
from converters.reading import (
    CropPlan,
    NamedSource,
    count_labels,
    name_sources,
    open_stacks,
    plan_crops,
    without_cells,
)
from converters.source import Hdf5Source, count_rows, read_aligned
from converters.structure import check_structure


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """One dataset of a file.

    Attributes:
        path: in the file.
        shape: of the dataset, None when it cannot be opened.
        dtype: as numpy spells it.
        chunks: shape of a chunk, None when contiguous.
        compression: names of the filters, '' for none.
        problem: why it cannot be opened, '' when it can.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    chunks: tuple[int, ...] | None
    compression: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Smallest and largest finite value of a channel, and how many values are missing.

    Attributes:
        channel: dataset path, or "pixels" of pictures.
        minimum: NaN when no value is finite.
        maximum: as `minimum`.
        n_nan: number of NaN.
        n_values: number of all values looked at.
    """

    channel: str
    minimum: float
    maximum: float
    n_nan: int
    n_values: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything there is to know about a source before importing it.

    Attributes:
        source: name.
        layout: recognised layout, "pictures" for pictures, '' when none matched.
        reasons: per layout why it did not match.
        error: the sentence that an import would end with, '' when it would work.
        datasets: tree of an HDF5 file.
        ranges: value range of each image channel.
        plan: numbers of images and cells; None when no layout matched.
        labels: number of images per label.
        n_unlabelled: images without one.
        problems: what an import would leave out, as far as it is known before.
    """

    source: str
    layout: str
    reasons: dict[str, str]
    error: str
    datasets: tuple[DatasetSummary, ...]
    ranges: tuple[ValueRange, ...]
    plan: CropPlan | None
    labels: dict[str, int]
    n_unlabelled: int
    problems: Problems


def inspect_source(path: Path, *, options: ReadOptions) -> Inspection:
    """Looks at all of a source, block by block.

    Args:
        path: HDF5 file, picture or folder.
        options: as for the import.

    Raises:
        UnreadableSourceError: the source does not exist or may not be read.
        NotHdf5Error: it is neither a picture nor HDF5, or truncated.
    """
    [source] = name_sources([path])
    problems = Problems()
    if is_picture_source(path):
        return _inspect_pictures(source, options, problems)
    check_structure(path, name=source.name, outside_links=options.outside_links)
    with Hdf5Source(path, name=source.name, outside_links=options.outside_links) as file:
        datasets = tuple(_summaries(file))
        try:
            layout = recognise(file, options.layout)
            ranges = tuple(_file_ranges(layout))
        except SourceError as error:
            return Inspection(
                source=source.name,
                layout="",
                reasons=_reasons(file, options),
                error=str(error),
                datasets=datasets,
                ranges=(),
                plan=None,
                labels={},
                n_unlabelled=0,
                problems=problems,
            )
        for remark in layout.remarks():
            problems.report(source.name, remark)
    return _importable(source, options, layout.name, datasets, ranges=ranges, problems=problems)


def _inspect_pictures(source: NamedSource, options: ReadOptions, problems: Problems) -> Inspection:
    pixels = _Range("pixels")
    with open_stacks(source, options=options, problems=problems) as stacks:
        for stack in stacks:
            for image in stack.read(range(stack.count)):
                channels = (image.image, image.phase, image.amplitude)
                pixels.add(next((plane for plane in channels if plane is not None), None))
    return _importable(
        source, options, "pictures", (), ranges=(pixels.summary(),), problems=problems
    )


def _importable(
    source: NamedSource,
    options: ReadOptions,
    layout: str,
    datasets: tuple[DatasetSummary, ...],
    *,
    ranges: tuple[ValueRange, ...],
    problems: Problems,
) -> Inspection:
    plan = plan_crops([source.path], options=options)
    labels: Counter[str] = count_labels([source.path], options=options)
    has_pixels = any(channel.n_values for channel in ranges)  # the plan looked at few pictures
    return Inspection(
        source=source.name,
        layout=layout,
        reasons={},
        error=""
        if has_pixels and not plan.is_empty
        else str(without_cells([source.path], problems)),
        datasets=datasets,
        ranges=ranges,
        plan=plan,
        labels=dict(labels.most_common()),
        n_unlabelled=plan.images - labels.total(),
        problems=problems,
    )


def _summaries(file: Hdf5Source) -> Sequence[DatasetSummary]:
    found = []
    for node in file.walk():
        if node.dataset is None:
            found.append(DatasetSummary(node.path, None, "", None, "", str(node.problem)))
            continue
        dataset = node.dataset
        found.append(
            DatasetSummary(
                path=node.path,
                shape=dataset.shape,
                dtype=str(dataset.dtype),
                chunks=dataset.chunks,
                compression=_filters(dataset),
            )
        )
    return found


def _filters(dataset: h5py.Dataset) -> str:
    if dataset.is_virtual:
        return "virtual"
    creation = dataset.id.get_create_plist()
    names = (creation.get_filter(at)[3] for at in range(creation.get_nfilters()))
    return ", ".join(name.decode("ascii", "replace").split(";")[0] for name in names)


def _reasons(file: Hdf5Source, options: ReadOptions) -> dict[str, str]:
    reasons = {}
    for layout in Layout.registry:
        try:
            found = layout.match(file, options.layout)
        except SourceError as error:
            reasons[layout.name] = error.message
        else:
            reasons[layout.name] = found if isinstance(found, str) else ""
    return reasons


def _file_ranges(layout: Layout) -> Sequence[ValueRange]:
    ranges: dict[str, _Range] = {}
    for columns in layout.stacks():
        channels = {
            role: dataset
            for role, dataset in columns.present().items()
            if role not in ("labels", "groups")
        }
        for _, row in read_aligned(channels, range(count_rows(columns.first))):
            for role, plane in row.items():
                name = channels[role].name.lstrip("/")
                # A series has one dataset per image: the channel, not each of them, has a range.
                name = role if columns.first.ndim == 2 else name
                ranges.setdefault(name, _Range(name)).add(plane)
    return [value_range.summary() for value_range in ranges.values()]


class _Range:
    """Range of the values of a channel, image by image."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._minimum, self._maximum = np.inf, -np.inf
        self._n_nan = self._n_values = 0

    def add(self, plane: NDArray[Any] | None) -> None:
        """Takes one image into account."""
        if plane is None:
            return
        finite = plane[np.isfinite(plane)]
        self._n_values += plane.size
        self._n_nan += int(np.isnan(plane).sum()) if finite.size < plane.size else 0
        if finite.size:
            self._minimum = min(self._minimum, float(finite.min()))
            self._maximum = max(self._maximum, float(finite.max()))

    def summary(self) -> ValueRange:
        """The range of all images so far."""
        empty = self._minimum > self._maximum
        return ValueRange(
            channel=self._channel,
            minimum=float("nan") if empty else self._minimum,
            maximum=float("nan") if empty else self._maximum,
            n_nan=self._n_nan,
            n_values=self._n_values,
        )
