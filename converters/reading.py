"""Sources into crops: files and folders are opened, their images chosen, counted and cut.

Everything streams: memory depends on the size of one block of images, not on that of the file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from converters.crops import Crop, ReadOptions, count_cells, cut_crops, is_frame
from converters.errors import EmptySourceError, UnreadableSourceError
from converters.images import Hdf5Stack, ImageStack, SourceImage
from converters.layouts import recognise
from converters.pictures import (
    PICTURE_SUFFIXES,
    PictureStack,
    find_files,
    is_text,
    single_picture,
)
from converters.problems import Problems
from converters.source import Hdf5Source
from converters.structure import check_structure

PLAN_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class CropPlan:
    """What an import will bring, for its progress bar.

    Attributes:
        images: number of images.
        cells: number of cells, estimated from a few frames unless `exact`.
        exact: whether `cells` is certain.
    """

    images: int
    cells: int
    exact: bool

    @property
    def is_empty(self) -> bool:
        """Whether it is certain that there is no cell."""
        return self.exact and not self.cells


@dataclass(frozen=True, slots=True)
class NamedSource:
    """A source and the name that its crops carry.

    An HDF5 file in a folder is named after the folder, a picture in it is not.
    """

    path: Path
    name: str


def name_sources(sources: Sequence[Path]) -> list[NamedSource]:
    """Sources under their file names, with as much of their folders as tells equal names apart.

    Raises:
        UnreadableSourceError: a source does not exist, may not be read, is given twice, or has a
            name that is not text.
    """
    for path in sources:
        _check_exists(path)
    resolved = [path.resolve() for path in sources]
    twice = [str(path) for path, times in Counter(resolved).items() if times > 1]
    if twice:
        raise UnreadableSourceError(
            f"{', '.join(twice)} is given twice.", hint="Name every source once."
        )
    names = [path.name for path in resolved]
    for depth in range(2, max((len(path.parts) for path in resolved), default=0) + 1):
        clashes = {name for name, times in Counter(names).items() if times > 1}
        names = [
            Path(*path.parts[-depth:]).as_posix() if name in clashes else name
            for path, name in zip(resolved, names, strict=True)
        ]
    for path, name in zip(sources, names, strict=True):
        if not is_text(name):
            raise UnreadableSourceError(
                f"The name of {path} is not UTF-8.", hint="Rename it, e.g. with `convmv`."
            )
    return [NamedSource(path, name) for path, name in zip(sources, names, strict=True)]


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise UnreadableSourceError(
            f"{path} does not exist.", hint="Check the path for typing errors."
        ) from error
    except OSError as error:  # such as a folder that may not be entered, or links in a circle
        raise UnreadableSourceError(
            f"{path} cannot be read ({error.strerror}).",
            hint="Check the path, and that you may read it and the folders it lies in.",
        ) from error


@contextmanager
def open_stacks(
    source: NamedSource, *, options: ReadOptions, problems: Problems
) -> Iterator[Iterator[ImageStack]]:
    """The stacks of images of one source: an HDF5 file, a picture, or a folder of both.

    Raises:
        SourceError: the source cannot be used.
    """
    if source.path.is_dir():
        yield _folder_stacks(source, options, problems)
    elif source.path.suffix.casefold() in PICTURE_SUFFIXES:
        yield iter([PictureStack(source.name, tuple(single_picture(source.path)), problems)])
    else:
        check_structure(source.path, name=source.name, outside_links=options.outside_links)
        with Hdf5Source(source.path, name=source.name, outside_links=options.outside_links) as file:
            yield _hdf5_stacks(file, options, problems)


def _hdf5_stacks(
    file: Hdf5Source, options: ReadOptions, problems: Problems
) -> Iterator[ImageStack]:
    layout = recognise(file, options.layout)
    for remark in layout.remarks():
        problems.report(file.name, remark)
    for columns in layout.stacks():
        yield Hdf5Stack(file.name, columns)


def _folder_stacks(
    source: NamedSource, options: ReadOptions, problems: Problems
) -> Iterator[ImageStack]:
    pictures, files = find_files(
        source.path, outside_links=options.outside_links, problems=problems
    )
    if not pictures and not files:
        raise EmptySourceError(
            f"{source.path} holds no picture and no HDF5 file.",
            hint="Give a folder of PNG, JPEG or TIFF pictures; class sub-folders become labels.",
        )
    if pictures:
        yield PictureStack(source.name, tuple(pictures), problems)
    for path in files:
        # A picture's labels go into a table only, but these must find their way back to one file.
        inside = PurePosixPath(source.name) / path.relative_to(source.path).as_posix()
        inner = NamedSource(path, inside.as_posix())
        with open_stacks(inner, options=options, problems=problems) as stacks:
            yield from stacks


def iter_crops(
    sources: Sequence[Path], *, options: ReadOptions, problems: Problems | None = None
) -> Iterator[Crop]:
    """The cells of all sources, in the order of the sources.

    Args:
        sources: HDF5 files, pictures and folders.
        options: how to read them.
        problems: told about everything that is left out or changed.

    Raises:
        SourceError: a source cannot be used; raised before the first crop of that source.
    """
    yield from iter_named_crops(name_sources(sources), options, problems)


def iter_named_crops(
    named: Sequence[NamedSource], options: ReadOptions, problems: Problems | None = None
) -> Iterator[Crop]:
    """As `iter_crops`, of sources that have their names already."""
    problems = Problems() if problems is None else problems
    if options.limit is None:
        for image in _iter_images(named, options, problems):
            yield from cut_crops(image, options=options, problems=problems)
        return
    n_images = _count_images(named, options)
    if options.limit < n_images:
        yield from _one_per_image(named, options, problems, n_images)
    else:
        yield from _evenly_of_all(named, options, problems)


def _one_per_image(
    named: Sequence[NamedSource], options: ReadOptions, problems: Problems, n_images: int
) -> Iterator[Crop]:
    """One cell of each of `limit` evenly spread images; one without cells passes its turn on."""
    due = 0
    chosen = _iter_images(named, options, problems, spread=(options.limit or 0, n_images))
    for turn, image in enumerate(chosen):
        crops = cut_crops(image, options=options, problems=problems)
        due += 1
        for step in range(min(due, len(crops))):
            yield crops[(turn + step) % len(crops)]
            due -= 1


def _evenly_of_all(
    named: Sequence[NamedSource], options: ReadOptions, problems: Problems
) -> Iterator[Crop]:
    """`limit` cells evenly spread over all, which are counted first."""
    limit = options.limit or 0
    total = sum(_cell_counts(named, options))
    rank = 0
    for image in _iter_images(named, options, problems):
        for crop in cut_crops(image, options=options, problems=problems):
            if _is_chosen(rank, limit, total):
                yield crop
            rank += 1


def _is_chosen(rank: int, limit: int, total: int) -> bool:
    return limit >= total or (rank + 1) * limit // total > rank * limit // total


def _iter_images(
    named: Sequence[NamedSource],
    options: ReadOptions,
    problems: Problems,
    *,
    spread: tuple[int, int] | None = None,
) -> Iterator[SourceImage]:
    """The images of all sources; with `spread` = (n, total) only n of them, evenly spaced."""
    first = 0
    for source in named:
        with open_stacks(source, options=options, problems=problems) as stacks:
            for stack in stacks:
                yield from stack.read(_chosen_indices(stack.count, first, spread))
                first += stack.count


def _chosen_indices(count: int, first: int, spread: tuple[int, int] | None) -> Sequence[int]:
    if spread is None:
        return range(count)
    return [index for index in range(count) if _is_chosen(first + index, *spread)]


def _count_images(named: Sequence[NamedSource], options: ReadOptions) -> int:
    return sum(stack.count for stack in _iter_stacks(named, options))


def _iter_stacks(
    named: Sequence[NamedSource], options: ReadOptions, problems: Problems | None = None
) -> Iterator[ImageStack]:
    """All stacks, for looking ahead: troubles are reported when they are read in earnest."""
    problems = Problems() if problems is None else problems
    for source in named:
        with open_stacks(source, options=options, problems=problems) as stacks:
            yield from stacks


def _cell_counts(named: Sequence[NamedSource], options: ReadOptions) -> Iterator[int]:
    for stack in _iter_stacks(named, options):
        if _holds_single_cells(stack, options):
            yield stack.count
        else:
            yield from (
                count_cells(image, options=options) for image in stack.read(range(stack.count))
            )


def _holds_single_cells(stack: ImageStack, options: ReadOptions) -> bool:
    return stack.size_px is not None and not is_frame(stack.size_px, options)


def plan_crops(
    sources: Sequence[Path], *, options: ReadOptions, problems: Problems | None = None
) -> CropPlan:
    """How many cells to expect; frames are estimated from three of each stack.

    Args:
        sources: HDF5 files, pictures and folders.
        options: how to read them.
        problems: told about what is left out of all that is looked at.

    Raises:
        SourceError: a source cannot be used.
    """
    images, cells, exact = 0, 0, True
    for stack in _iter_stacks(name_sources(sources), options, problems):
        images += stack.count
        if _holds_single_cells(stack, options):
            cells += stack.count
            continue
        sample = sorted(set(np.linspace(0, stack.count - 1, PLAN_SAMPLES).astype(int).tolist()))
        found = [count_cells(image, options=options) for image in stack.read(sample)]
        cells += round(stack.count * sum(found) / len(sample))
        exact = exact and len(sample) == stack.count
    if options.limit is not None:
        cells = min(cells, options.limit)
    return CropPlan(images, cells, exact)


def without_cells(sources: Sequence[Path], problems: Problems) -> EmptySourceError:
    """The error of an import that finds no cell; `problems` say what was left out."""
    return EmptySourceError(
        f"No cell was found in {', '.join(str(source) for source in sources)}"
        f"{''.join(f'; {p.reason}: {p.count}' for p in problems)}.",
        hint="Try --sensitivity high or a smaller --min-area; `cellai inspect` shows the file.",
    )


def count_labels(sources: Sequence[Path], *, options: ReadOptions) -> Counter[str]:
    """How many images carry each label, in all sources together; no image is read.

    The limit does not apply: labels are checked for the whole source.

    Raises:
        SourceError: a source cannot be used.
    """
    counts: Counter[str] = Counter()
    for stack in _iter_stacks(name_sources(sources), options):
        counts.update(label for label in stack.labels() if label is not None)
    return counts
