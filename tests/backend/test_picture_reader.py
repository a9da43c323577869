"""Pictures of tasks: found, decoded, and never read from where they must not be."""

import base64
import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.errors import PredictionError
from backend.images import DISPLAY_KEYS, PictureReader, decode
from backend.label_studio import LabelStudioClient, Task

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class Recorder(LabelStudioClient):
    """Answers downloads with one picture and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__("http://label-studio:8080", "token")
        self.asked: list[str] = []

    def download(self, path: str) -> bytes:
        self.asked.append(path)
        return png(PIXELS)

    def resolve(self, task_id: int, uri: str) -> bytes | str:
        self.asked.append(f"{task_id} {uri}")
        return "http://127.0.0.1:1/cells/cell.png"


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def client() -> Recorder:
    return Recorder()


@pytest.fixture
def reader(tmp_path: Path, client: Recorder) -> PictureReader:
    files = tmp_path / "files"
    (files / "project-1").mkdir(parents=True)
    (files / "project-1" / "cell.png").write_bytes(png(PIXELS))
    (tmp_path / "secret.png").write_bytes(png(PIXELS))
    os.mkfifo(files / "pipe.png")
    (files / "circle.png").symlink_to("circle.png")
    (files / "folder").symlink_to(tmp_path)
    return PictureReader(files, client)


def test_local_file_is_read_from_the_shared_folder(reader: PictureReader, client: Recorder) -> None:
    for url in (
        "/data/local-files/?d=project-1/cell.png",
        "http://label-studio:8080/data/local-files/?d=project-1/cell.png",
    ):
        assert (reader.read(Task(7, {"image": url})) == PIXELS).all()
    assert client.asked == []


def test_upload_is_asked_from_label_studio(reader: PictureReader, client: Recorder) -> None:
    assert (reader.read(Task(7, {"image": "/data/upload/3/cell.png"})) == PIXELS).all()
    assert client.asked == ["data/upload/3/cell.png"]


def test_bucket_is_asked_for_with_the_task(reader: PictureReader, client: Recorder) -> None:
    """Where Label Studio then sends us is test_bucket's subject; here no bucket is set."""
    with pytest.raises(PredictionError, match="CELLAI_BUCKET_URL"):
        reader.read(Task(7, {"image": "s3://cells/cell.png"}))
    assert client.asked == ["7 s3://cells/cell.png"]


def test_data_url_is_decoded(reader: PictureReader) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(PIXELS)).decode()
    assert (reader.read(Task(7, {"image": url})) == PIXELS).all()


def test_model_looks_at_its_own_stack_and_people_at_colours(reader: PictureReader) -> None:
    data = {"model_input": "/data/upload/1/stack.png", "phase": "/data/upload/1/phase.png"}
    assert reader.identity(data) == "/data/upload/1/stack.png"
    assert reader.read(Task(7, data), keys=DISPLAY_KEYS).shape == PIXELS.shape


@pytest.mark.parametrize(
    "url",
    [
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=project-1/../../secret.png",
        "/data/local-files/?d=/etc/hostname",
        "/data/local-files/?d=project-1/none.png",
        "/data/local-files/",
        "file:///etc/hostname",
        "http://169.254.169.254/latest/meta-data",
        "http://label-studio:8081/data/upload/1/cell.png",
        "http://label-studio:8080@example.org/data/upload/1/cell.png",
        "//example.org/data/upload/1/cell.png",
        "/api/users/",
        "/data/../api/users/",
        "/data/%2e%2e/api/users/",
        "S3://cells/cell.png",
        "gs://cells/cell.png",
        "/tasks/1/resolve/?fileuri=czM6Ly9jZWxscy9hLnBuZw==",
        "ftp://label-studio:8080/data/upload/1/cell.png",
        "data:image/png;base64,%%%",
        "data:image/png,raw",
        "cell.png",
        "/data/local-files/?d=..%2fsecret.png",
        "/data/local-files/?d=..%252fsecret.png",
        "/data/local-files/?d=%2e%2e/secret.png",
        "/data/local-files/?d=project-1/%00/cell.png",
        "/data/local-files/?d=project-1",
        "/data/local-files/?d=" + "a/" * 3000,
        "/data/local-files/?d=pipe.png",
        "/data/local-files/?d=circle.png",
        "/data/local-files/?d=folder/secret.png",
        "FILE:///etc/hostname",
        "file://localhost/etc/hostname",
        "http://[::1]:8080/data/upload/1/cell.png",
        "http://[",
        "http://0x7f000001:8080/data/upload/1/cell.png",
        "http://label-studio:8080\\@example.org/data/upload/1/cell.png",
        "/\\example.org/data/upload/1/cell.png",
        "/data/%252e%252e/../api/users/",
        "/%64ata/../api/users/",
    ],
)
def test_other_addresses_are_refused_without_a_request(
    reader: PictureReader, client: Recorder, url: str
) -> None:
    with pytest.raises(PredictionError):
        reader.read(Task(7, {"image": url}))
    with contextlib.suppress(PredictionError):  # nothing else: one task must not fail the batch
        reader.identity({"image": url})
    assert client.asked == []


def test_link_out_of_the_folder_is_refused(reader: PictureReader, tmp_path: Path) -> None:
    (tmp_path / "files" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(PredictionError, match="outside"):
        reader.read(Task(7, {"image": "/data/local-files/?d=link.png"}))


def test_task_without_picture_says_so(reader: PictureReader) -> None:
    with pytest.raises(PredictionError, match="no picture"):
        reader.identity({"image": "", "phase": None, "text": "x"})


def test_identity_changes_with_the_file(reader: PictureReader, tmp_path: Path) -> None:
    data = {"image": "/data/local-files/?d=project-1/cell.png"}
    before = reader.identity(data)
    (tmp_path / "files" / "project-1" / "cell.png").write_bytes(png(PIXELS[:2]))
    assert reader.identity(data) != before


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 3)).save(buffer, "TIFF" if mode in {"CMYK", "I;16"} else "PNG")
    assert decode(buffer.getvalue()).shape == (3, 5, 3)


def test_bomb_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="too large"):
        decode(buffer.getvalue())


@pytest.mark.parametrize(("size", "kind"), [((8_000_000, 2), "PNG"), ((200, 60_000), "JPEG")])
def test_elongated_picture_is_refused(
    size: tuple[int, int], kind: str, reader: PictureReader, tmp_path: Path
) -> None:
    """A square around it would take terabytes."""
    Image.new("L", size).save(tmp_path / "files" / "long.png", kind)
    with pytest.raises(PredictionError, match=r"cannot be read\. .* 4096 px"):
        reader.read(Task(7, {"image": "/data/local-files/?d=long.png"}))
