"""Writes labels where the layout of a file keeps them; old ones are kept as `..._before`.

Works on a copy that `hdf5_copy` made. A file that has a label column gets that column again with
the new labels at their rows; CellFace files without one get `label/ground_truth`, RT-DC files the
scores `ml_score_xxx`, a qpimage series nothing (its labels stand in the table of the export only).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import OutputError
from converters.label_columns import decode_labels, is_one_hot
from converters.layouts import CellFace, Columns, Layout, QpimageSeries, RtDc
from converters.source import Hdf5Source, read_rows

# CellFace files of one lab say the same in two columns; both must stay true.
CELLFACE_LABELS = ("label/ground_truth", "label/celltype")


@dataclass(frozen=True, slots=True)
class WrittenLabels:
    """What was written for one stack of images, to be compared with what is read back.

    Attributes:
        labels: by row.
        columns: values by path of the new dataset.
        kept: where the old dataset of a path was moved to.
        class_of: class of each path, for layouts with a column per class.
    """

    labels: Mapping[int, str]
    columns: Mapping[str, NDArray[Any]]
    kept: Mapping[str, str]
    class_of: Mapping[str, str]


def write_labels(
    source: Hdf5Source,
    copy: h5py.File,
    *,
    layout: Layout,
    labels: Mapping[str, Mapping[int, str]],
    classes: Sequence[str],
) -> list[WrittenLabels]:
    """Writes the labels of single-cell images into the columns of a copy.

    Args:
        source: the file that was copied.
        copy: the copy, opened for writing.
        layout: of the file.
        labels: label by row by path of the image dataset.
        classes: all classes of the project, for layouts with a column per class.

    Returns:
        What was written, per stack; nothing for stacks without labels or label column.
    """
    written = []
    for columns in layout.stacks():
        rows = labels.get(columns.dataset)
        if not rows or isinstance(layout, QpimageSeries):
            continue
        class_of: dict[str, str] = {}
        if isinstance(layout, RtDc):
            class_of = score_classes([*classes, *sorted(set(rows.values()) - set(classes))])
            new = score_columns(rows, n_rows=columns.count, class_of=class_of)
        else:
            new = {
                path: updated_column(old, rows, n_rows=columns.count)
                for path, old in _label_columns(source, layout, columns).items()
            }
        moved = {path: keep_old(copy, path) for path in new if path in copy}
        for path, values in new.items():
            copy.create_dataset(path, data=values)
        written.append(WrittenLabels(rows, new, moved, class_of))
    return written


def check_labels(copy: h5py.File, written: WrittenLabels) -> None:
    """Compares the label columns of a reopened copy with what was written, row by row.

    Raises:
        OutputError: a label is not the one that was written; names the row.
    """
    for path, values in written.columns.items():
        if not _same_values(copy[path][()], values):
            raise _wrong(copy, path, "its values differ")
    for found in _stored_labels(copy, written):
        for row, label in written.labels.items():
            # Read as the file's reader does it, which takes a class `none` for no label.
            if found[row] != next(decode_labels([label])):
                raise _wrong(copy, f"row {row}", f"it says {found[row]!r} instead of {label!r}")


def _stored_labels(copy: h5py.File, written: WrittenLabels) -> Iterator[Mapping[int, str | None]]:
    """The labels as a reader of the file finds them, for each place that tells them."""
    if written.class_of:
        scores = {name: copy[path][()] for path, name in written.class_of.items()}
        yield {
            row: "+".join(name for name, column in scores.items() if column[row] == 1)
            for row in written.labels
        }
        return
    for path in written.columns:
        yield dict(enumerate(decode_labels(copy[path][()])))


def _same_values(stored: NDArray[Any], expected: NDArray[Any]) -> bool:
    if stored.dtype.hasobject:
        return bool(stored.tolist() == expected.tolist())
    return stored.dtype == expected.dtype and stored.tobytes() == expected.tobytes()


def _wrong(copy: h5py.File, where: str, what: str) -> OutputError:
    return OutputError(
        f"The labels in {Path(copy.filename).name} were not written right: {where}: {what}.",
        hint="Nothing was written. Check the disk, then export again.",
    )


def _label_columns(
    source: Hdf5Source, layout: Layout, columns: Columns
) -> dict[str, h5py.Dataset | None]:
    """The label columns of a file by path; None for the one to create."""
    if columns.labels is None:
        path = CELLFACE_LABELS[0] if isinstance(layout, CellFace) else "labels"
        return {path if path not in source.file else "cellai/labels": None}
    path = next(node.path for node in source.walk() if node.dataset == columns.labels)
    found = {path: columns.labels}
    if isinstance(layout, CellFace) and path in CELLFACE_LABELS:
        for other in CELLFACE_LABELS:
            dataset = source.dataset(other)
            if dataset is not None and dataset.shape == columns.labels.shape:
                found[other] = dataset
    return found


def keep_old(copy: h5py.File, path: str) -> str:
    """Moves a dataset out of the way of a new one, with its attributes; returns where to.

    Readers of RT-DC files complain about unknown names among the events, hence the other group.
    """
    place = f"cellai/{path.rpartition('/')[2]}" if path.startswith("events/") else path
    names = (f"{place}_before{number}" for number in ("", *range(2, 1000)))
    kept = next(name for name in names if name not in copy)
    copy.require_group(f"/{kept.rpartition('/')[0]}")
    copy.move(path, kept)
    return kept


def updated_column(
    old: h5py.Dataset | None, labels: Mapping[int, str], *, n_rows: int
) -> NDArray[Any]:
    """A label column with new labels at some rows, of the old type where that can hold them.

    Text grows as long as it must, one-hot compounds get fields for new classes. Numbers that
    cannot express a label become text.

    Args:
        old: the column so far, shape (N,); None for none.
        labels: by row.
        n_rows: N.

    Returns:
        Bytes, text, integers or one-hot fields, shape (N,).

    Raises:
        NotHdf5Error: the column so far cannot be read.
    """
    if old is None:
        return _text_column(np.zeros(n_rows, dtype="S1"), labels)
    values = read_rows(old, 0, n_rows).astype(old.dtype)  # whose metadata tell the encoding
    if is_one_hot(values.dtype):
        return _one_hot_column(values, labels)
    if values.dtype.kind in "iu":
        return _integer_column(values, labels)
    return _text_column(values, labels)


def _text_column(values: NDArray[Any], labels: Mapping[int, str]) -> NDArray[Any]:
    kind = h5py.check_string_dtype(values.dtype)
    encoded = {row: label.encode() for row, label in labels.items()}
    ascii_only = (
        kind is not None and kind.encoding == "ascii" and b"".join(encoded.values()).isascii()
    )
    length = None
    if values.dtype.kind == "S":
        length = max([values.dtype.itemsize, *map(len, encoded.values())])
    column = values.astype(h5py.string_dtype("ascii" if ascii_only else "utf-8", length))
    for row, label in encoded.items():
        column[row] = label
    return column


def _one_hot_column(values: NDArray[Any], labels: Mapping[int, str]) -> NDArray[Any]:
    names = list(values.dtype.names or ())
    number = values.dtype[0]
    added = sorted(set(labels.values()) - set(names))
    fields = [(name, values.dtype[name]) for name in names] + [(name, number) for name in added]
    column = np.zeros(len(values), dtype=fields)
    for name in names:
        column[name] = values[name]
    for row, label in labels.items():
        column[row] = np.zeros((), dtype=fields)
        column[label][row] = 1
    return column


def _integer_column(values: NDArray[Any], labels: Mapping[int, str]) -> NDArray[Any]:
    numbers = h5py.check_enum_dtype(values.dtype) or {}
    for label in labels.values():
        if not numbers and label.isdecimal() and int(label) <= np.iinfo(values.dtype).max:
            numbers = numbers | {label: int(label)}
    if not set(labels.values()) <= set(numbers):
        names = [(name or "").encode() for name in decode_labels(values)]
        return _text_column(np.array(names, dtype=bytes), labels)
    column = values.copy()
    for row, label in labels.items():
        column[row] = numbers[label]
    return column


def score_columns(
    labels: Mapping[int, str], *, n_rows: int, class_of: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    """RT-DC scores: 1 for the class of a cell, 0 for the others, NaN for cells without label.

    Args:
        labels: by row.
        n_rows: number of events N.
        class_of: see `score_classes`.

    Returns:
        Column of shape (N,) by path.

    Source:
        dclab, "Features": `ml_score_xxx`, in [0, 1] or NaN; `ml_class` is computed from them.
    """
    columns: dict[str, NDArray[np.float64]] = {}
    for path, name in class_of.items():
        columns[path] = np.full(n_rows, np.nan)
        for row, label in labels.items():
            columns[path][row] = float(label == name)
    return columns


def score_classes(classes: Sequence[str]) -> dict[str, str]:
    """Class by the path of its RT-DC score, named by its first three letters or digits."""
    class_of: dict[str, str] = {}
    for name in classes:
        start = re.sub("[^a-z0-9]", "", name.casefold())[:3].ljust(3, "0")
        numbered = (f"{start[: 3 - len(str(n))]}{n}" for n in range(1, 1000))
        paths = (f"events/ml_score_{code}" for code in (start, *numbered))
        class_of[next(path for path in paths if path not in class_of)] = name
    return class_of
