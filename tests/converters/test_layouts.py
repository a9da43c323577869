from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import h5py
import hdf5plugin
import numpy as np
import pytest

from converters.errors import (
    BrokenLinkError,
    EmptySourceError,
    MissingFilterError,
    ShapeMismatchError,
    SourceError,
    UnknownLayoutError,
)
from converters.layouts import Columns, Layout, LayoutOptions, recognise
from converters.source import Hdf5Source

WriteHdf5 = Callable[..., Path]
RGB = np.zeros((6, 48, 48, 3), np.uint8)
FLOATS = np.zeros((6, 48, 48), np.float32)
NAMES = np.array([b"rbc"] * 6)


def describe(path: Path, **options: str) -> tuple[str, list[dict[str, Any]]]:
    """Name of the layout, and per stack its dataset, count and the path of each column."""
    with Hdf5Source(path) as source:
        layout = recognise(source, LayoutOptions(**options))
        stacks = [
            {role: dataset.name for role, dataset in columns.present().items()}
            | {"dataset": columns.dataset, "count": columns.count}
            for columns in layout.stacks()
        ]
    return layout.name, stacks


def test_cellface_crops(write_hdf5: WriteHdf5, crop_stack: dict[str, Any]) -> None:
    name, [stack] = describe(write_hdf5("x.seg", crop_stack | {"meta/field_group": np.arange(5)}))
    assert name == "CellFace"
    assert stack == {
        "phase": "/phase/images",
        "amplitude": "/amplitude/images",
        "mask": "/mask/images",
        "labels": "/label/ground_truth",
        "groups": "/meta/field_group",
        "dataset": "phase/images",
        "count": 5,
    }


def test_cellface_without_amplitude_mask_and_labels(write_hdf5: WriteHdf5) -> None:
    name, [stack] = describe(write_hdf5("x.pre", {"phase/images": FLOATS}))
    assert name == "CellFace"
    assert set(stack) == {"phase", "dataset", "count"}


def test_cellface_one_hot_labels(write_hdf5: WriteHdf5) -> None:
    one_hot = np.zeros(6, dtype=[("rbc", "f4"), ("wbc", "f4")])
    path = write_hdf5("x.seg", {"phase/images": FLOATS, "label/celltype": one_hot})
    assert describe(path)[1][0]["labels"] == "/label/celltype"


@pytest.mark.parametrize("channel", ["amplitude/images", "mask/images", "label/ground_truth"])
@pytest.mark.parametrize("rows", [3, 9])
def test_cellface_lengths_must_agree(write_hdf5: WriteHdf5, channel: str, rows: int) -> None:
    wrong = np.array([b"rbc"] * rows) if "label" in channel else np.zeros((rows, 48, 48), "f4")
    path = write_hdf5("x.seg", {"phase/images": FLOATS, channel: wrong})
    with pytest.raises(ShapeMismatchError, match=f"{channel}' has {rows} rows"):
        describe(path)


def test_cellface_sizes_must_agree(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.seg", {"phase/images": FLOATS, "mask/images": np.zeros((6, 40, 48), "u1")})
    with pytest.raises(ShapeMismatchError, match=r"\(40, 48\)"):
        describe(path)


def test_cellface_without_images(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.seg", {"phase/images": np.zeros((0, 48, 48), "f4")})
    with pytest.raises(EmptySourceError, match="no image"):
        describe(path)


def test_broken_label_link_is_not_taken_for_no_labels(
    tmp_path: Path, write_hdf5: WriteHdf5
) -> None:
    path = write_hdf5("x.seg", {"phase/images": FLOATS})
    with h5py.File(path, "a") as file:
        file["label/ground_truth"] = h5py.ExternalLink("gone.h5", "/labels")
    with pytest.raises(BrokenLinkError, match=r"gone\.h5"):
        describe(path)


def test_rtdc_with_more_masks_than_images(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5(
        "x.rtdc",
        {
            "events/image": np.zeros((6, 80, 250), "u1"),
            "events/image_bg": np.zeros((6, 80, 250), "u1"),
            "events/mask": np.zeros((8, 80, 250), "u1"),
            "events/ml_score_rbc": np.zeros(6),
            "events/area_um": np.zeros(6),
        },
        chunks=True,
        **hdf5plugin.Zstd(),
    )
    name, [stack] = describe(path)
    assert name == "RT-DC"
    assert set(stack) == {"image", "background", "mask", "dataset", "count"}
    assert (stack["dataset"], stack["count"]) == ("events/image", 6)


def test_rtdc_with_fewer_masks_than_images(write_hdf5: WriteHdf5) -> None:
    events = {"events/image": np.zeros((6, 8, 8), "u1"), "events/mask": np.zeros((5, 8, 8), "u1")}
    with pytest.raises(ShapeMismatchError, match="mask' has 5 rows"):
        describe(write_hdf5("x.rtdc", events))


def test_rtdc_with_phase_smaller_than_the_hologram(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5(
        "x.rtdc", {"events/image": np.zeros((6, 96, 96), "u1"), "events/qpi_pha": FLOATS}
    )
    with Hdf5Source(path) as source:
        layout = recognise(source, LayoutOptions())
        [columns] = layout.stacks()
        assert columns.image is None
        assert columns.dataset == "events/qpi_pha"
        assert "hologram" in layout.remarks()[0]


def test_qpimage_series_in_numeric_order(write_hdf5: WriteHdf5) -> None:
    series = {}
    for number in range(11):
        series[f"qpi_{number}/phase/raw"] = np.zeros((30, 40), "f4")
        series[f"qpi_{number}/amplitude/raw"] = np.ones((30, 40), "f4")
    name, stacks = describe(write_hdf5("x.h5", series))
    assert name == "qpimage series"
    assert [stack["dataset"] for stack in stacks] == [f"qpi_{n}/phase/raw" for n in range(11)]
    assert {stack["count"] for stack in stacks} == {1}


def test_qpimage_group_without_phase(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5(
        "x.h5", {"qpi_0/phase/raw": np.zeros((8, 8)), "qpi_1/amplitude/raw": np.zeros((8, 8))}
    )
    with pytest.raises(ShapeMismatchError, match="qpi_1/phase/raw"):
        describe(path)


def test_labels_asked_of_a_series_are_not_ignored(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"qpi_0/phase/raw": np.zeros((8, 8)), "labels": NAMES[:1]})
    with pytest.raises(UnknownLayoutError, match="no label column 'labels'"):
        describe(path, labels="labels")


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        ({"images": RGB, "labels": NAMES}, {"image": "/images", "labels": "/labels"}),
        ({"a/b/c": RGB}, {"image": "/a/b/c"}),
        ({"x": RGB[..., 0], "deep/celltype": NAMES}, {"image": "/x", "labels": "/deep/celltype"}),
        ({"x": FLOATS}, {"phase": "/x"}),
        ({"my_amplitude": FLOATS}, {"amplitude": "/my_amplitude"}),
        ({"x": RGB, "labels": np.arange(6)}, {"image": "/x", "labels": "/labels"}),
        ({"x": RGB, "meta/split": NAMES, "labels": NAMES}, {"image": "/x", "labels": "/labels"}),
    ],
)
def test_generic_images(
    write_hdf5: WriteHdf5, datasets: dict[str, Any], expected: dict[str, str]
) -> None:
    name, [stack] = describe(write_hdf5("x.h5", datasets))
    assert name == "generic images"
    del stack["dataset"], stack["count"]
    assert stack == expected


def test_several_image_datasets_are_listed_not_guessed(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"red": RGB, "green": FLOATS})
    with pytest.raises(UnknownLayoutError, match=r"green .*red .*--images") as caught:
        describe(path)
    assert "--labels" in caught.value.hint
    assert describe(path, images="red")[1][0]["image"] == "/red"


def test_several_label_columns_are_listed_not_guessed(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"x": RGB, "a/labels": NAMES, "b/labels": NAMES})
    with pytest.raises(UnknownLayoutError, match=r"a/labels .*b/labels"):
        describe(path)
    assert describe(path, labels="b/labels")[1][0]["labels"] == "/b/labels"


def test_generic_label_length_must_agree(write_hdf5: WriteHdf5) -> None:
    with pytest.raises(ShapeMismatchError, match="labels' has 5 rows"):
        describe(write_hdf5("x.h5", {"x": RGB, "labels": NAMES[:5]}))


def test_unused_text_columns_are_remarked(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"x": FLOATS, "meta/patient": NAMES})
    with Hdf5Source(path) as source:
        remarks = " ".join(recognise(source, LayoutOptions()).remarks())
    assert "meta/patient" in remarks
    assert "phase in rad" in remarks


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"images": "absent"}, UnknownLayoutError, "no dataset 'absent'.*labels .*x"),
        ({"labels": "absent"}, ShapeMismatchError, "'absent' does not exist"),
        ({"labels": "x"}, ShapeMismatchError, "has shape"),
        ({"images": "labels"}, ShapeMismatchError, "not images"),
    ],
)
def test_wrong_paths_from_the_user(
    write_hdf5: WriteHdf5, options: dict[str, str], error: type[SourceError], text: str
) -> None:
    path = write_hdf5("x.h5", {"x": RGB, "labels": NAMES})
    with pytest.raises(error, match=text):
        describe(path, **options)


def test_unknown_layout_says_why_and_what_there_is(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"table": np.arange(5), "names": NAMES})
    with pytest.raises(UnknownLayoutError) as caught:
        describe(path)
    for text in ("CellFace: no dataset phase/images", "RT-DC:", "qpimage", "generic", "table (5,)"):
        assert text in str(caught.value)


def test_file_without_datasets(write_hdf5: WriteHdf5) -> None:
    with pytest.raises(UnknownLayoutError, match="no dataset"):
        describe(write_hdf5("x.h5", {}))


def test_missing_filter_is_not_mistaken_for_no_images(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"images": RGB}, chunks=(1, 48, 48, 3), **hdf5plugin.Zstd())
    code = (32015).to_bytes(2, "little")
    path.write_bytes(path.read_bytes().replace(code, (31999).to_bytes(2, "little")))
    with pytest.raises(MissingFilterError, match="31999"):
        describe(path)


def test_a_new_layout_is_one_class(write_hdf5: WriteHdf5) -> None:
    path = write_hdf5("x.h5", {"special/pictures": RGB, "other": RGB})
    before = list(Layout.registry)
    try:

        class Special(Layout):
            name: ClassVar[str] = "special"

            def __init__(self, columns: Columns) -> None:
                self.columns = columns

            @classmethod
            def match(cls, source: Hdf5Source, options: LayoutOptions) -> Self | str:  # noqa: ARG003
                pictures = source.dataset("special/pictures")
                if pictures is None:
                    return "no special/pictures"
                return cls(Columns("special/pictures", image=pictures))

            def stacks(self) -> Iterator[Columns]:
                yield self.columns

        assert describe(path)[0] == "special"
    finally:
        Layout.registry[:] = before
