"""Label columns of every type take new labels and keep the others; RT-DC gets its scores."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.errors import OutputError
from converters.label_columns import decode_labels
from converters.label_writing import (
    check_labels,
    score_classes,
    score_columns,
    updated_column,
    write_labels,
)
from converters.layouts import LayoutOptions, recognise
from converters.source import Hdf5Source

ONE_HOT = [("rbc", "f4"), ("wbc", "f4")]
ENUM = h5py.enum_dtype({"rbc": 0, "wbc": 1, "plt": 2}, basetype="u1")


def stored(values: Any, dtype: Any = None) -> h5py.Dataset:
    """A dataset in memory, as a file would give it."""
    file = h5py.File.in_memory()
    return file.create_dataset("labels", data=values, dtype=dtype)


def written_and_read(column: Any) -> h5py.Dataset:
    return stored(column)


COLUMNS = {
    "bytes": (np.array([b"rbc", b"wbc", b"rbc"]), None),
    "ascii text": (["rbc", "wbc", "rbc"], h5py.string_dtype("ascii")),
    "text": (["rbc", "wbc", "rbc"], h5py.string_dtype()),
    "fixed text": (["rbc", "wbc", "rbc"], h5py.string_dtype("utf-8", 3)),
    "one-hot": (np.array([(1, 0), (0, 1), (1, 0)], dtype=ONE_HOT), None),
    "enumeration": (np.array([0, 1, 0], dtype="u1"), ENUM),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("label", ["plt", "granulocyte", "Monozyt ö"])
def test_new_label_stands_in_its_row_and_the_others_stay(kind: str, label: str) -> None:
    values, dtype = COLUMNS[kind]
    column = updated_column(stored(values, dtype), {1: label}, n_rows=3)
    assert list(decode_labels(written_and_read(column)[()])) == ["rbc", label, "rbc"]


def test_text_of_a_file_is_read_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads text of any length there may hang in here; see `text_columns`."""
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("labels", data=["rbc", "wbc"], dtype=h5py.string_dtype("ascii"))
    with h5py.File(path) as file:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
        column = updated_column(file["labels"], {1: "plt"}, n_rows=2)
    assert column.tolist() == [b"rbc", b"plt"]
    kind = h5py.check_string_dtype(column.dtype)
    assert kind is not None
    assert (kind.encoding, kind.length) == ("ascii", None)


@pytest.mark.parametrize("kind", COLUMNS)
def test_type_stays_when_it_can_hold_the_label(kind: str) -> None:
    values, dtype = COLUMNS[kind]
    old = stored(values, dtype)
    new = written_and_read(updated_column(old, {1: "rbc"}, n_rows=3))
    assert new.id.get_type().equal(old.id.get_type())
    assert list(decode_labels(new[()])) == ["rbc", "rbc", "rbc"]


def test_numbers_stay_numbers_for_numbered_classes() -> None:
    column = updated_column(stored(np.array([0, -1, 2], "i1")), {1: "7"}, n_rows=3)
    assert column.dtype == np.int8
    assert column.tolist() == [0, 7, 2]


@pytest.mark.parametrize("label", ["rbc", "300"])
def test_numbers_become_text_where_a_label_is_none(label: str) -> None:
    column = updated_column(stored(np.array([0, -1, 2], "i1")), {1: label}, n_rows=3)
    assert list(decode_labels(column)) == ["0", label, "2"]


def test_without_a_column_the_rest_is_unlabelled() -> None:
    column = updated_column(None, {2: "rbc"}, n_rows=4)
    assert list(decode_labels(column)) == [None, None, "rbc", None]


@given(
    st.lists(st.sampled_from(["rbc", "wbc", ""]), min_size=1, max_size=20),
    st.dictionaries(st.integers(0, 19), st.text("abcäöü", min_size=1, max_size=9), max_size=9),
)
def test_any_labels_come_back(old: list[str], labels: dict[int, str]) -> None:
    labels = {row: label for row, label in labels.items() if row < len(old)}
    column = updated_column(stored(np.array(old, dtype="S3")), labels, n_rows=len(old))
    expected = [labels.get(row, name) or None for row, name in enumerate(old)]
    assert list(decode_labels(written_and_read(column)[()])) == expected


def test_scores_are_one_zero_and_nan() -> None:
    class_of = score_classes(["rbc", "wbc"])
    columns = score_columns({0: "wbc", 2: "rbc"}, n_rows=3, class_of=class_of)
    np.testing.assert_array_equal(columns["events/ml_score_rbc"], [0, np.nan, 1])
    np.testing.assert_array_equal(columns["events/ml_score_wbc"], [1, np.nan, 0])


@given(st.lists(st.text(min_size=1), unique=True, max_size=40))
def test_scores_have_distinct_names_of_three_letters_or_digits(classes: list[str]) -> None:
    class_of = score_classes(classes)
    assert sorted(class_of.values()) == sorted(classes)
    codes = [path.removeprefix("events/ml_score_") for path in class_of]
    assert all(len(code) == 3 and code.isascii() and code.isalnum() for code in codes)
    assert [code.lower() for code in codes] == codes


def test_both_label_columns_of_a_cellface_file_are_kept_true(tmp_path: Path) -> None:
    path = tmp_path / "cells.seg"
    with h5py.File(path, "w") as file:
        file["phase/images"] = np.ones((3, 20, 20), np.float16)
        file["label/ground_truth"] = COLUMNS["bytes"][0]
        file["label/celltype"] = COLUMNS["one-hot"][0]
    with Hdf5Source(path) as source, h5py.File.in_memory() as copy:
        source.file.copy("label", copy)
        layout = recognise(source, LayoutOptions())
        (written,) = write_labels(
            source, copy, layout=layout, labels={"phase/images": {0: "wbc"}}, classes=["rbc"]
        )
        check_labels(copy, written)
        for column in ("ground_truth", "celltype"):
            assert list(decode_labels(copy["label"][column][()])) == ["wbc", "wbc", "rbc"]
            before = copy["label"][f"{column}_before"][()]
            assert list(decode_labels(before)) == ["rbc", "wbc", "rbc"]
        copy["label/ground_truth"][2] = b"wbc"
        with pytest.raises(OutputError, match="its values differ"):
            check_labels(copy, written)
