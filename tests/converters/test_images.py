from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converters.images import (
    Hdf5Stack,
    SourceImage,
    as_rgb,
    border_level,
    full_scale,
    percent_of_background,
)
from converters.layouts import LayoutOptions, recognise
from converters.source import Hdf5Source

WriteHdf5 = Callable[..., Path]


def read_all(path: Path) -> list[SourceImage]:
    with Hdf5Source(path) as source:
        layout = recognise(source, LayoutOptions())
        return [
            image
            for columns in layout.stacks()
            for image in Hdf5Stack(source.name, columns).read(range(columns.count))
        ]


def test_images_come_with_label_and_group(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any]
) -> None:
    path = write_hdf5("x.seg", crop_stack | {"meta/field_group": np.array([7, 7, 8, 8, 0])})
    images = read_all(path)
    assert [image.label for image in images] == ["rbc", "wbc", None, "rbc", None]
    assert [image.group for image in images] == ["7", "7", "8", "8", "0"]
    assert [image.where for image in images] == [f"phase/images[{n}]" for n in range(5)]
    for index, image in enumerate(images):
        assert image.phase is not None
        assert image.phase.dtype == np.float16
        np.testing.assert_array_equal(image.phase, crop_stack["phase/images"][index])


def test_labels_are_read_without_images(
    write_hdf5: WriteHdf5, crop_stack: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hdf5Source(write_hdf5("x.seg", crop_stack)) as source:
        [columns] = recognise(source, LayoutOptions()).stacks()
        monkeypatch.setattr("converters.images.read_aligned", None)
        labels = list(Hdf5Stack("x.seg", columns).labels())
    assert labels == ["rbc", "wbc", None, "rbc", None]


@pytest.mark.parametrize("kind", ["bytes", "variable", "one-hot", "integers"])
def test_all_kinds_of_label_columns(write_hdf5: WriteHdf5, kind: str) -> None:
    one_hot = np.array([(1, 0), (0, 1)], dtype=[("rbc", "f4"), ("wbc", "f4")])
    columns: dict[str, Any] = {
        "bytes": ("label/ground_truth", np.array([b"rbc", b"wbc"])),
        "variable": ("label/ground_truth", ["rbc", "wbc"]),
        "one-hot": ("label/celltype", one_hot),
        "integers": ("label/ground_truth", np.array([0, 1])),
    }
    path, values = columns[kind]
    images = read_all(write_hdf5("x.seg", {"phase/images": np.zeros((2, 8, 8)), path: values}))
    expected = ["0", "1"] if kind == "integers" else ["rbc", "wbc"]
    assert [image.label for image in images] == expected


def test_rtdc_pictures_are_grey_rgb_and_extra_masks_are_left(write_hdf5: WriteHdf5) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (3, 20, 30), dtype=np.uint8)
    masks = np.zeros((4, 20, 30), np.uint8)
    masks[:, 5:9, 5:9] = 255
    images = read_all(write_hdf5("x.rtdc", {"events/image": grey, "events/mask": masks}))
    assert len(images) == 3
    for index, image in enumerate(images):
        assert image.phase is None
        assert image.image is not None
        np.testing.assert_array_equal(image.image, np.repeat(grey[index, ..., None], 3, axis=2))
        assert image.mask is not None
        assert image.mask.max() == 255


def test_relative_amplitude_becomes_percent(write_hdf5: WriteHdf5) -> None:
    amplitude = np.full((20, 20), 1.6)
    amplitude[8:12, 8:12] = 2.0
    datasets = {"qpi_0/phase/raw": np.zeros((20, 20)), "qpi_0/amplitude/raw": amplitude}
    [image] = read_all(write_hdf5("x.h5", datasets))
    assert image.amplitude is not None
    assert image.amplitude[0, 0] == pytest.approx(0, abs=1e-4)
    assert image.amplitude[10, 10] == pytest.approx(25, abs=1e-4)


def test_dark_amplitude_is_left_as_it_is() -> None:
    np.testing.assert_array_equal(percent_of_background(np.zeros((4, 4))), np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("maximum", "dtype", "expected"),
    [
        (200, "u2", 255),
        (1000, "u2", 1023),
        (4000, "u2", 4095),
        (60000, "u2", 65535),
        (10**6, "u4", 10**6),
        (0.9, "f4", 1),
        (200, "f4", 255),
        (1, "?", 1),
    ],
)
def test_full_scale_of_cameras(maximum: float, dtype: str, expected: float) -> None:
    assert full_scale(maximum, np.dtype(dtype)) == expected


def test_twelve_bit_pictures_are_not_black(write_hdf5: WriteHdf5) -> None:
    deep = np.zeros((3, 8, 8), np.uint16)
    deep[1:] = 4095
    deep[0] = 2048
    images = read_all(write_hdf5("x.h5", {"x": deep}))
    levels = [int(image.image[0, 0, 0]) for image in images if image.image is not None]
    assert levels == [128, 255, 255]


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        (np.array(7, np.uint8), (7, 7, 7)),
        (np.array([7], np.uint8), (7, 7, 7)),
        (np.array([1, 2, 3], np.uint8), (1, 2, 3)),
        (np.array([0, 0, 0, 0], np.uint8), (255, 255, 255)),
        (np.array([100, 100, 100, 255], np.uint8), (100, 100, 100)),
        (np.array([np.nan, 255, 300], np.float32), (0, 255, 255)),
    ],
)
def test_pixels_as_rgb(pixel: NDArray[Any], expected: tuple[int, ...]) -> None:
    image = np.broadcast_to(pixel, (2, 2, *pixel.shape))
    assert tuple(as_rgb(image, full_scale=255)[0, 0].tolist()) == expected


def test_border_level_ignores_the_cell_and_missing_values() -> None:
    channel = np.full((10, 10), 3.0)
    channel[2:8, 2:8] = 99
    channel[0, :5] = np.nan
    assert border_level(channel) == 3
    assert border_level(np.full((4, 4), np.nan)) == 0
