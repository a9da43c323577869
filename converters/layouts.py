"""The ways in which cells are laid out in HDF5 files, and how to tell them apart.

A new layout is one subclass of `Layout`: it says whether a file matches (or why not) and names
the datasets of each stack of images. Reading is left to `images`, opening and links to `source`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import h5py

from converters.dataset_checks import (
    MAX_COLOUR_CHANNELS,
    check_chunks,
    check_images,
    check_volume,
    image_size,
)
from converters.errors import ShapeMismatchError, UnknownLayoutError
from converters.label_columns import is_label_column
from converters.source import Hdf5Source, Node, count_rows

LABEL_NAMES = frozenset(
    {"label", "labels", "ground_truth", "class", "classes", "class_name", "celltype", "cell_type"}
)
MIN_SIDE_PX = 4


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What the user said about the datasets of a file.

    Attributes:
        images: path of the image dataset, '' to find it.
        labels: path of the label column, '' to find it.
    """

    images: str = ""
    labels: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Datasets of one stack of images, row by row in step.

    Attributes:
        dataset: path of the image dataset, by which labels find their way back.
        phase: (N, H, W) or (H, W), rad.
        amplitude: as `phase`; background-subtracted unless `relative_amplitude`.
        image: (N, H, W[, C]), camera picture.
        background: as `image`, camera picture without the cell.
        mask: as `phase`, 0 outside cells; may have more rows.
        labels: (N,) text, integers or one-hot fields.
        groups: (N,) field of view of each image.
        relative_amplitude: the amplitude is a factor of the background's.
    """

    dataset: str
    phase: h5py.Dataset | None = None
    amplitude: h5py.Dataset | None = None
    image: h5py.Dataset | None = None
    background: h5py.Dataset | None = None
    mask: h5py.Dataset | None = None
    labels: h5py.Dataset | None = None
    groups: h5py.Dataset | None = None
    relative_amplitude: bool = False

    def present(self) -> dict[str, h5py.Dataset]:
        """The datasets that exist, by role."""
        roles = ("phase", "amplitude", "image", "background", "mask", "labels", "groups")
        return {role: dataset for role in roles if (dataset := getattr(self, role)) is not None}

    @property
    def first(self) -> h5py.Dataset:
        """The dataset that counts: phase if there is one, else image, else amplitude."""
        for dataset in (self.phase, self.image, self.amplitude):
            if dataset is not None:
                return dataset
        msg = f"no image dataset at '{self.dataset}'"
        raise ValueError(msg)

    @property
    def count(self) -> int:
        """Number of images."""
        return count_rows(self.first)


class Layout(ABC):
    """One way to lay out cells in an HDF5 file; subclasses register themselves.

    Attributes:
        name: how people call it.
        last: tried only after all layouts that do not say so.
    """

    name: ClassVar[str]
    last: ClassVar[bool] = False
    registry: ClassVar[list[type["Layout"]]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Layout.registry.append(cls)
        Layout.registry.sort(key=lambda layout: layout.last)

    @classmethod
    @abstractmethod
    def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:
        """The layout of this file, or the reason why it is not this one.

        Raises:
            SourceError: the file is of this layout but cannot be used.
        """

    @abstractmethod
    def stacks(self) -> Iterator[Columns]:
        """The stacks of images, each with its columns, in file order."""

    def remarks(self) -> tuple[str, ...]:
        """What of the file is not used, or is used on an assumption."""
        return ()


def recognise(source: Hdf5Source, options: LayoutOptions) -> Layout:
    """The layout of a file; every column has been checked.

    Args:
        source: an open file.
        options: paths given by the user; `images` asks for the generic layout.

    Raises:
        UnknownLayoutError: nothing matched; says why not, and which datasets there are.
        SourceError: the file matches but cannot be used.
    """
    reasons = []
    for layout in Layout.registry:
        if options.images and layout is not GenericImages:
            continue
        found = layout.match(source, options)
        if isinstance(found, Layout):
            _check_volume(found, source)
            return found
        reasons.append(f"{layout.name}: {found}")
    nodes = list(source.walk())
    for node in nodes:
        if node.problem is not None:
            raise node.problem
    raise UnknownLayoutError(
        f"{source.name} has no known layout ({'; '.join(reasons)}).",
        hint=f"It holds: {_listing(nodes)}. Name the datasets with --images PATH --labels PATH.",
    )


def _check_volume(layout: Layout, source: Hdf5Source) -> None:
    datasets = [dataset for columns in layout.stacks() for dataset in columns.present().values()]
    check_volume(datasets, source=source.name, stored_bytes=source.stored_bytes)


def _listing(nodes: list[Node], *, at_most: int = 12) -> str:
    shown = [
        f"{n.path} {n.dataset.shape} {n.dataset.dtype}" for n in nodes if n.dataset is not None
    ]
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return ", ".join(shown[:at_most]) + more or "no dataset"


def check_columns(columns: Columns, *, source: str, extra_masks: bool = False) -> Columns:
    """The columns themselves, once their shapes agree.

    Args:
        columns: datasets of one stack.
        source: name for messages.
        extra_masks: masks may outnumber the images, as RT-DC files have them.

    Raises:
        ShapeMismatchError: numbers of rows or image sizes disagree.
        EmptySourceError: a dataset holds nothing.
    """
    count, size = columns.count, image_size(columns.first)
    for role, dataset in columns.present().items():
        rows = count_rows(dataset)
        is_column = role in ("labels", "groups")
        if is_column:
            check_chunks(dataset, f"{source}: '{dataset.name}'")
        else:
            check_images(dataset, source=source)
        if rows != count and not (extra_masks and role == "mask" and rows > count):
            raise ShapeMismatchError(
                f"{source}: '{dataset.name}' has {rows} rows "
                f"but '{columns.first.name}' has {count}.",
                hint="Each image needs exactly one row; was the file cut or written in two parts?",
            )
        if not is_column and image_size(dataset) != size:
            raise ShapeMismatchError(
                f"{source}: '{dataset.name}' has images of {image_size(dataset)} px "
                f"(height, width) but '{columns.first.name}' has {size}.",
                hint="All channels of an image must have the same size.",
            )
    return columns


def _label_column(source: Hdf5Source, path: str, *, asked: bool) -> h5py.Dataset | None:
    dataset = source.dataset(path)
    if dataset is None and not asked:
        return None
    if dataset is None or not is_label_column(dataset):
        found = (
            "does not exist" if dataset is None else f"has shape {dataset.shape} {dataset.dtype}"
        )
        raise ShapeMismatchError(
            f"{source.name}: the label column '{path}' {found}.",
            hint="Labels are one-dimensional text, integers or one-hot fields, one per image.",
        )
    return dataset


def _group_column(source: Hdf5Source) -> h5py.Dataset | None:
    groups = source.dataset("meta/field_group")
    return groups if groups is not None and is_label_column(groups) else None


@dataclass(frozen=True)  # slots would register a second class
class CellFace(Layout):
    """Frames (.pre) or crops (.seg) of the CellFace labs: `phase/images` and `amplitude/images`."""

    name: ClassVar[str] = "CellFace"
    columns: Columns

    @classmethod
    def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:
        """Matches `phase/images`; labels are in `label/ground_truth` or `label/celltype`."""
        phase = source.dataset("phase/images")
        if phase is None:
            return "no dataset phase/images"
        columns = Columns(
            dataset="phase/images",
            phase=phase,
            amplitude=source.dataset("amplitude/images"),
            mask=source.dataset("mask/images"),
            labels=cls._labels(source, options),
            groups=_group_column(source),
        )
        return cls(check_columns(columns, source=source.name))

    @staticmethod
    def _labels(source: Hdf5Source, options: LayoutOptions) -> h5py.Dataset | None:
        if options.labels:
            return _label_column(source, options.labels, asked=True)
        text = _label_column(source, "label/ground_truth", asked=False)
        return text if text is not None else _label_column(source, "label/celltype", asked=False)

    def stacks(self) -> Iterator[Columns]:
        """The only stack."""
        yield self.columns


@dataclass(frozen=True)  # slots would register a second class
class RtDc(Layout):
    """Deformability cytometry files (.rtdc) of Shape-In, dclab and DCscope: group `events`.

    The scores `ml_score_*` are not read as labels: a file does not say whether a person or a model
    gave them.

    Source:
        dclab 0.6x, "Feature definitions": qpi_pha [rad], qpi_amp [a.u.], image uint8, mask.
    """

    name: ClassVar[str] = "RT-DC"
    columns: Columns
    ignores_image: bool = False

    @classmethod
    def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:
        """Matches files with `events/image` or `events/qpi_pha`; masks may outnumber images."""
        image, phase = source.dataset("events/image"), source.dataset("events/qpi_pha")
        if image is None and phase is None:
            return "no dataset events/image"
        # A camera may record a larger hologram than is reconstructed.
        is_hologram = (
            phase is not None and image is not None and image_size(phase) != image_size(image)
        )
        image = None if is_hologram else image
        columns = Columns(
            dataset="events/image" if image is not None else "events/qpi_pha",
            phase=phase,
            amplitude=source.dataset("events/qpi_amp"),
            image=image,
            background=source.dataset("events/image_bg") if image is not None else None,
            mask=source.dataset("events/mask"),
            labels=_label_column(source, options.labels, asked=True) if options.labels else None,
            groups=_group_column(source),
            relative_amplitude=True,
        )
        checked = check_columns(columns, source=source.name, extra_masks=True)
        return cls(checked, ignores_image=is_hologram)

    def stacks(self) -> Iterator[Columns]:
        """The only stack."""
        yield self.columns

    def remarks(self) -> tuple[str, ...]:
        """Says when the hologram is left aside."""
        return ("events/image is a hologram of another size than qpi_pha: not used",) * (
            self.ignores_image
        )


@dataclass(frozen=True)  # slots would register a second class
class QpimageSeries(Layout):
    """Series written by qpimage: groups `qpi_0 .. qpi_N`, one image each.

    Source:
        qpimage 0.9, `QPSeries`: `qpi_N/phase/raw` [rad], `qpi_N/amplitude/raw` (1 = background).
    """

    name: ClassVar[str] = "qpimage series"
    source: Hdf5Source
    members: tuple[str, ...] = field(repr=False)

    @classmethod
    def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:
        """Matches files with groups qpi_N, or one `phase/raw` at the root."""
        numbered = [name for name in source.root_names() if re.fullmatch(r"qpi_\d{1,9}", name)]
        members = sorted(numbered, key=lambda name: int(name.removeprefix("qpi_")))
        if not members and source.dataset("phase/raw") is not None:
            members = [""]
        if not members:
            return "no group qpi_0"
        if options.labels:
            raise UnknownLayoutError(
                f"{source.name} is a {cls.name}, which has no label column '{options.labels}'.",
                hint="Leave --labels away; each group of the series is one image.",
            )
        layout = cls(source, tuple(f"{name}/" if name else "" for name in members))
        next(layout.stacks())
        return layout

    def stacks(self) -> Iterator[Columns]:
        """One stack of one image per group.

        Raises:
            ShapeMismatchError: a group lacks its phase, or sizes disagree.
        """
        for member in self.members:
            path = f"{member}phase/raw"
            phase = self.source.dataset(path)
            if phase is None or phase.ndim != 2:
                raise ShapeMismatchError(
                    f"{self.source.name}: '{path}' is missing or not a single image.",
                    hint="Each group qpi_N of a qpimage series holds phase/raw of shape (H, W).",
                )
            amplitude = self.source.dataset(f"{member}amplitude/raw")
            columns = Columns(path, phase=phase, amplitude=amplitude, relative_amplitude=True)
            yield check_columns(columns, source=self.source.name)


@dataclass(frozen=True)  # slots would register a second class
class GenericImages(Layout):
    """One dataset of images (N, H, W[, C]), and a label column where one is named like it.

    Integers (and colours) are camera pictures, single-channel floats are phase in rad, or amplitude
    where the path says so.
    """

    name: ClassVar[str] = "generic images"
    last: ClassVar[bool] = True
    columns: Columns
    unused_text: tuple[str, ...] = ()

    @classmethod
    def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:
        """Matches files with exactly one image dataset, or the one that `--images` names."""
        nodes = _openable(source, names=LABEL_NAMES if options.images else None)
        images = _asked_images(source, options) if options.images else _only_images(source, nodes)
        if images is None:
            return "no dataset of shape (N, H, W) or (N, H, W, C)"
        path, dataset = images
        rows = count_rows(dataset)
        labels = cls._labels(source, options, nodes, rows=rows)
        unused = () if labels is not None else tuple(_text_columns(nodes, rows))
        columns = Columns(
            dataset=path,
            labels=labels,
            groups=_group_column(source),
            **{_role(path, dataset): dataset},
        )
        return cls(check_columns(columns, source=source.name), unused_text=unused)

    @staticmethod
    def _labels(
        source: Hdf5Source, options: LayoutOptions, nodes: list[Node], *, rows: int
    ) -> h5py.Dataset | None:
        if options.labels:
            return _label_column(source, options.labels, asked=True)
        named = [node for node in nodes if _last_name(node) in LABEL_NAMES]
        columns = [n for n in named if is_label_column(n.dataset)]
        fitting = [n for n in columns if count_rows(n.dataset) == rows] or columns
        if len(fitting) > 1:
            raise UnknownLayoutError(
                f"{source.name} has several label columns: {_listing(fitting)}.",
                hint="Name one with --labels PATH.",
            )
        return fitting[0].dataset if fitting else None

    def stacks(self) -> Iterator[Columns]:
        """The only stack."""
        yield self.columns

    def remarks(self) -> tuple[str, ...]:
        """Names text that may have been meant as labels, and what floats were taken for."""
        remarks = []
        if self.unused_text:
            names = ", ".join(self.unused_text)
            remarks.append(f"text columns not used as labels: {names} (name one with --labels)")
        if self.columns.phase is not None:
            remarks.append(f"{self.columns.dataset}: decimal numbers are taken as phase in rad")
        return tuple(remarks)


def _openable(source: Hdf5Source, *, names: frozenset[str] | None) -> list[Node]:
    """The datasets of the file; one that cannot be opened may be the one that was meant.

    Args:
        source: the file.
        names: only the loss of these matters; None for any.
    """
    nodes = list(source.walk())
    for node in nodes:
        if node.problem is not None and (names is None or _last_name(node) in names):
            raise node.problem
    return [node for node in nodes if node.dataset is not None]


def _last_name(node: Node) -> str:
    return node.path.split("/")[-1].casefold()


def _text_columns(nodes: list[Node], rows: int) -> Iterator[str]:
    for node in nodes:
        column: Any = node.dataset
        is_text = is_label_column(column) and column.dtype.kind in "SUO"
        if is_text and count_rows(column) == rows:
            yield node.path


def _asked_images(source: Hdf5Source, options: LayoutOptions) -> tuple[str, h5py.Dataset]:
    dataset = source.dataset(options.images)
    if dataset is None:
        nodes = [node for node in source.walk() if node.dataset is not None]
        raise UnknownLayoutError(
            f"{source.name} has no dataset '{options.images}'.",
            hint=f"It holds: {_listing(nodes)}.",
        )
    check_images(dataset, source=source.name)
    return options.images.strip("/"), dataset


def _only_images(source: Hdf5Source, nodes: list[Node]) -> tuple[str, h5py.Dataset] | None:
    candidates = [node for node in nodes if _looks_like_images(node.dataset)]
    if len(candidates) > 1:
        raise UnknownLayoutError(
            f"{source.name} has several datasets that may be the images: {_listing(candidates)}.",
            hint="Name one with --images PATH, and its labels with --labels PATH.",
        )
    return (candidates[0].path, candidates[0].dataset) if candidates else None


def _looks_like_images(dataset: h5py.Dataset) -> bool:
    if dataset.shape is None or dataset.dtype.kind not in "buif" or dataset.ndim not in (3, 4):
        return False
    colours = dataset.shape[3] if dataset.ndim == 4 else 1
    return min(image_size(dataset)) >= MIN_SIDE_PX and 1 <= colours <= MAX_COLOUR_CHANNELS


def _role(path: str, dataset: h5py.Dataset) -> str:
    if dataset.dtype.kind in "bui" or (dataset.ndim == 4 and dataset.shape[3] > 1):
        return "image"
    return "amplitude" if "amp" in path.casefold() else "phase"
