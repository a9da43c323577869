import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from converters.crops import Crop, ReadOptions
from converters.errors import EmptySourceError
from converters.pictures import read_picture
from converters.problems import Problems
from converters.reading import count_labels, iter_crops


def save(path: Path, pixels: NDArray[Any] | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path, **options)
    return path


def noise(height: int = 40, width: int = 50) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)


def read(folder: Path, **options: Any) -> tuple[list[Crop], dict[str, int]]:
    problems = Problems()
    crops = list(iter_crops([folder], options=ReadOptions(**options), problems=problems))
    return crops, {problem.reason: problem.count for problem in problems}


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("rbc/1.png", "rbc/2.JPG", "wbc/deep/plt/3.tif", "4.png"):
        save(tmp_path / "cells" / name, noise())
    crops, problems = read(tmp_path / "cells")
    assert {crop.source: crop.label for crop in crops} == {
        "4.png": None,
        "rbc/1.png": "rbc",
        "rbc/2.JPG": "rbc",
        "wbc/deep/plt/3.tif": "plt",
    }
    assert {(crop.dataset, crop.index) for crop in crops} == {("", 0)}
    assert not problems
    counted = count_labels([tmp_path / "cells"], options=ReadOptions())
    assert counted == {"rbc": 2, "plt": 1}


def test_pixels_and_place_of_a_small_picture(tmp_path: Path) -> None:
    pixels = noise(40, 50)
    [crop], _ = read(save(tmp_path / "one.png", pixels))
    assert crop.image is not None
    np.testing.assert_array_equal(crop.image[28:68, 23:73], pixels)
    assert crop.bbox == (0, 0, 50, 40)
    assert crop.phase is None
    assert crop.mask is None


def test_broken_pictures_are_reported_and_skipped(tmp_path: Path) -> None:
    save(tmp_path / "rbc" / "good.png", noise())
    (tmp_path / "rbc" / ".DS_Store.jpg").write_bytes(b"\x00\x00\x00\x01Bud1\x00\x00")
    (tmp_path / "rbc" / "empty.png").touch()
    (tmp_path / "rbc" / "notes.txt").write_text("hello")
    buffer = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(buffer, "PNG")
    (tmp_path / "rbc" / "truncated.png").write_bytes(buffer.getvalue()[:5000])
    crops, problems = read(tmp_path)
    assert [crop.source for crop in crops] == ["rbc/good.png"]
    assert problems == {
        "not a readable picture: skipped": 3,
        "neither a picture nor HDF5: skipped": 1,
    }


def test_decompression_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    (tmp_path / "large.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )
    crops, problems = read(tmp_path)
    assert not crops
    assert problems == {"picture larger than 24,000,000 px: skipped": 2}


def test_sixteen_bit_greys_are_scaled_alike(tmp_path: Path) -> None:
    save(tmp_path / "bright.png", np.full((20, 20), 4095, np.uint16))
    save(tmp_path / "dim.tif", np.full((20, 20), 1000, np.uint16))
    crops, _ = read(tmp_path)
    levels = {crop.source: crop.image[48, 48].tolist() for crop in crops if crop.image is not None}
    assert levels == {"bright.png": [255] * 3, "dim.tif": [62] * 3}


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_unusual_modes(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    picture = Image.new("RGB", (30, 20), (255, 255, 255)).convert(mode)
    pixels, remark = read_picture(save(tmp_path / f"x.{suffix}", picture))
    assert remark == ""
    assert pixels.dtype == np.uint8
    assert pixels.shape[:2] == (20, 30)
    assert pixels.min() > 250


def test_transparent_is_white(tmp_path: Path) -> None:
    pixels, _ = read_picture(save(tmp_path / "x.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0))))
    assert (pixels == 255).all()


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _ = read_picture(save(tmp_path / "x.jpg", noise(20, 30), exif=exif))
    assert pixels.shape == (30, 20, 3)


def test_animation_is_its_first_image_and_reported(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    save(tmp_path / "x.png", first, save_all=True, append_images=[second])
    [crop], problems = read(tmp_path)
    assert crop.image is not None
    assert crop.image[48, 48].tolist() == [255, 0, 0]
    assert problems == {"animated picture: only the first image is used": 1}


def test_pages_of_a_tiff_are_images(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((20, 20), level, np.uint8)) for level in (10, 20, 30)]
    save(tmp_path / "rbc" / "x.tif", pages[0], save_all=True, append_images=pages[1:])
    crops, _ = read(tmp_path)
    assert [crop.index for crop in crops] == [0, 1, 2]
    assert [crop.image[48, 48, 0] for crop in crops if crop.image is not None] == [10, 20, 30]
    assert len({crop.crop_id for crop in crops}) == 3


def test_float_tiff_is_phase(tmp_path: Path) -> None:
    save(tmp_path / "x.tif", np.full((96, 96), 1.5, np.float32))
    [crop], _ = read(tmp_path)
    assert crop.image is None
    assert crop.phase is not None
    assert (crop.phase == 1.5).all()


def test_labelled_picture_larger_than_a_crop_is_one_scaled_cell(tmp_path: Path) -> None:
    save(tmp_path / "wbc" / "x.png", noise(360, 363))
    [crop], problems = read(tmp_path)
    assert crop.label == "wbc"
    assert crop.flags == ("scaled",)
    assert crop.bbox == (0, 0, 363, 360)
    assert crop.image is not None
    assert crop.image.shape == (96, 96, 3)
    assert list(problems) == ["labelled picture larger than 96 px: scaled down as one cell"]


def test_link_out_of_the_folder_is_refused_unless_allowed(tmp_path: Path) -> None:
    outside = save(tmp_path / "private.png", noise())
    save(tmp_path / "cells" / "own.png", noise())
    (tmp_path / "cells" / "link.png").symlink_to(outside)
    crops, problems = read(tmp_path / "cells")
    assert [crop.source for crop in crops] == ["own.png"]
    assert problems == {"symbolic link out of the folder: skipped": 1}
    assert len(read(tmp_path / "cells", outside_links=True)[0]) == 2


def test_equal_pictures_in_two_places_are_two_cells(tmp_path: Path) -> None:
    save(tmp_path / "rbc" / "x.png", noise())
    save(tmp_path / "wbc" / "x.png", noise())
    crops, _ = read(tmp_path)
    assert len({crop.crop_id for crop in crops}) == 2


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EmptySourceError, match="holds no picture"):
        read(tmp_path)
