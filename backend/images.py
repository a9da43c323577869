"""From a task to pixels: which picture the model looks at, where it lies, and reading it safely.

A task is user input. Local-files pictures are read from the shared folder and only from
there; anything else is asked from Label Studio itself. No other host is ever contacted, except
the operator's bucket (`backend.bucket`).
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.bucket import MAX_BYTES, BucketReader
from backend.bucket import SCHEME as BUCKET_SCHEME
from backend.errors import PredictionError
from backend.label_studio import LabelStudioClient, Task
from backend.settings import Settings
from converters.errors import LabelStudioError
from converters.images import as_rgb, full_scale
from converters.pictures import PICTURE_ERRORS, read_picture

# What the model looks at: the channel stack made for it, else what the annotator sees.
MODEL_KEYS = ("model_input", "image", "phase", "amplitude")
# What a person looks at.
DISPLAY_KEYS = ("image", "phase", "amplitude", "model_input")
MAX_SIDE_PX = 4096  # the trunk sees a square of the longer side
LOCAL_FILES = "/data/local-files/"
_HALF_PAIR = re.compile("[\ud800-\udfff]")

UInt8Array = NDArray[np.uint8]


class PictureReader:
    """Reads the pictures of tasks from the shared folder, from Label Studio or from the bucket.

    Args:
        files_dir: the shared folder.
        client: asks Label Studio.
        bucket_url: address of the bucket with pictures, '' for none.
    """

    def __init__(self, files_dir: Path, client: LabelStudioClient, *, bucket_url: str = "") -> None:
        self._files_dir = files_dir.resolve()
        self._client = client
        self._bucket = BucketReader(bucket_url, client)

    def identity(self, task_data: Mapping[str, Any]) -> str:
        """Text that changes when a file of the shared folder may have changed, without reading it.

        Of what Label Studio or a bucket serves it is the address: to overwrite that goes unnoticed.

        Raises:
            PredictionError: the task has no picture, or the file is not there.
        """
        url = picture_url(task_data)
        try:
            relative = self._local_files_path(url)
            if relative is None:
                return url
            # Nothing is read: following links to check where they end is left to `read`, for
            # it takes longer than everything else that a known picture needs (measured).
            status = (self._files_dir / relative).stat()
        except (ValueError, OSError) as error:
            raise _unavailable(url) from error
        return f"{url}|{status.st_size}|{status.st_mtime_ns}"

    def read(self, task: Task, *, keys: tuple[str, ...] = MODEL_KEYS) -> UInt8Array:
        """Pixels of the task's picture, shape (H, W, 3), uint8.

        Args:
            task: its id matters for pictures in a bucket only.
            keys: where to look for the address of the picture, in this order.

        Raises:
            PredictionError: no picture, not readable, or not an image.
        """
        url = picture_url(task.data, keys)
        try:
            return decode(self._bytes(url, task.id))
        except (OSError, LabelStudioError, ValueError) as error:
            raise _unavailable(url) from error

    def local_path(self, url: str) -> Path | None:
        """Where a local-files URL points below the shared folder; None for other URLs.

        Raises:
            PredictionError: the URL is none, or leaves the shared folder.
        """
        try:
            relative = self._local_files_path(url)
            if relative is None:
                return None
            path = (self._files_dir / relative).resolve()
        except (ValueError, RuntimeError, OSError) as error:  # NUL, brackets, links in a circle
            raise _unavailable(url) from error
        if not path.is_relative_to(self._files_dir):
            raise PredictionError(
                f"The address {url!r} points outside the shared picture folder.",
                hint="Only files below CELLAI_FILES_DIR are read.",
            )
        return path

    def _local_files_path(self, url: str) -> str | None:
        """The path that a local-files URL names, unchecked; None for other URLs.

        Raises:
            ValueError: the URL is none.
        """
        parts = urlsplit(url)
        if parts.path != LOCAL_FILES or not self._is_own(url):
            return None
        return parse_qs(parts.query).get("d", [""])[0]

    def _bytes(self, url: str, task_id: int) -> bytes:
        if url.startswith(BUCKET_SCHEME):
            return self._bucket.read(task_id, url)
        if url.startswith("data:image/"):
            return _decode_data_url(url)
        path = self.local_path(url)
        if path is not None:
            if not path.is_file():  # a pipe would be waited for without end
                raise _unavailable(url)
            if path.stat().st_size > MAX_BYTES:
                raise _unavailable(url)
            return path.read_bytes()
        served = unquote(urlsplit(url).path)
        if not (self._is_own(url) and served.startswith("/data/") and ".." not in served):
            raise PredictionError(
                f"The address {url[:200]!r} is not one of Label Studio's own pictures.",
                hint="Import pictures through `cellai import`, uploads or local files.",
            )
        return self._client.download(url.removeprefix(self._client.url).lstrip("/"))

    def _is_own(self, url: str) -> bool:
        """Whether the URL is relative, or absolute below Label Studio's own address."""
        parts = urlsplit(url)
        if not parts.scheme and not parts.netloc:
            return url.startswith("/")
        own = urlsplit(self._client.url)
        return (parts.scheme, parts.netloc) == (own.scheme, own.netloc)


def picture_reader(settings: Settings, client: LabelStudioClient) -> PictureReader:
    """The reader of one backend."""
    return PictureReader(settings.files_dir, client, bucket_url=settings.bucket_url)


def picture_url(task_data: Mapping[str, Any], keys: tuple[str, ...] = MODEL_KEYS) -> str:
    """Address of the first picture that the task has under one of the keys.

    Raises:
        PredictionError: none of the known keys holds one, or it has half a surrogate pair, which
            JSON can hold and no address.
    """
    for key in keys:
        value = task_data.get(key)
        if isinstance(value, str) and value:
            if _HALF_PAIR.search(value):
                raise _unavailable(value)
            return value
    raise PredictionError(
        f"The task has no picture in any of {', '.join(keys)}.",
        hint="Import it with `cellai import`, or name the picture `image`.",
    )


def decode(payload: bytes) -> UInt8Array:
    """Decode a PNG, JPEG or TIFF to RGB as a browser shows it, shape (H, W, 3), uint8.

    Turned as its camera was held, transparent parts white; more than 8 bits are scaled by the full
    scale of the camera that fits.

    Raises:
        ValueError: not a picture, truncated, or a side of more than `MAX_SIDE_PX`.
    """
    try:
        pixels, _ = read_picture(io.BytesIO(payload), max_px=MAX_SIDE_PX**2)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("the picture is too large for a cell") from error
    except PICTURE_ERRORS as error:
        raise ValueError("not a picture") from error
    if max(pixels.shape[:2]) > MAX_SIDE_PX:
        raise ValueError("the picture is too large for a cell")
    if pixels.dtype == np.uint8:
        return as_rgb(pixels, full_scale=255)
    brightest = float(np.nan_to_num(pixels).max())
    return as_rgb(pixels, full_scale=full_scale(brightest, pixels.dtype))


def _decode_data_url(url: str) -> bytes:
    header, _, body = url.partition(",")
    if not header.endswith(";base64"):
        raise ValueError("not a base64 picture")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError("not a base64 picture") from error


def _unavailable(url: str) -> PredictionError:
    return PredictionError(
        f"The picture {url[:200]!r} cannot be read.",
        hint="It was moved or deleted, is not an image, or has a side of more than"
        f" {MAX_SIDE_PX} px; import the source again.",
    )
