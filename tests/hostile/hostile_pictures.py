"""Pictures made to harm, and odd ones that are sound; contents by file name."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

GREY = np.arange(30 * 20, dtype=np.uint8).reshape(20, 30) % 200


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, *, body: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG of 8-bit greys that declares a size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [_chunk(b"IHDR", header), extra, _chunk(b"IDAT", zlib.compress(body))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _chunk(b"IEND", b"")


def _tiff(width: int, height: int) -> bytes:
    """A TIFF whose strip lies outside the file."""
    values = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1)}
    values |= {273: (4, 2**31), 277: (3, 1), 278: (4, height), 279: (4, 2**31)}
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(values.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)


def hostile() -> dict[str, bytes]:
    """What must be refused."""
    grey = Image.fromarray(GREY)
    text_bomb = zlib.compress(bytes(2**28), 9)
    return {
        "bomb.png": png(50_000, 50_000, body=bytes(2**20)),
        "wide.png": png(2**31 - 1, 1),
        "zero.png": png(0, 10),
        "short.png": png(300, 300, body=bytes(100)),
        "text-bomb.png": png(20, 20, extra=_chunk(b"zTXt", b"k\0\0" + text_bomb)),
        "profile-bomb.png": png(20, 20, extra=_chunk(b"iCCP", b"k\0\0" + text_bomb)),
        "cut.png": encoded(grey, "PNG")[:60],
        "cut.jpg": encoded(grey, "JPEG")[:200],
        "cut.tif": encoded(grey, "TIFF")[:-300],
        "bomb.jpg": encoded(grey, "JPEG").replace(
            struct.pack(">HH", 20, 30), struct.pack(">HH", 65_500, 65_500)
        ),
        "outside.tif": _tiff(20, 20),
        "bomb.tif": _tiff(2**31 - 1, 2**31 - 1),
        "gif.png": encoded(grey, "GIF"),
        "bmp.jpg": encoded(grey, "BMP"),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "hdf5.png": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "nothing.png": b"",
        "zeros.tif": bytes(1000),
    }


def unusual() -> dict[str, bytes]:
    """What is odd but sound: (20, 30) grey values, the first black and the brightest near white."""
    grey = Image.fromarray(GREY)
    colour = grey.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    transparent = Image.merge("RGBA", [*colour.split(), Image.new("L", grey.size, 255)])
    palette = colour.quantize(256)
    return {
        "jpeg.png": encoded(grey, "JPEG"),
        "png.jpg": encoded(grey, "PNG"),
        "deep.png": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        "deep.tif": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(colour.convert("CMYK"), "TIFF"),
        "animated.png": encoded(
            grey, "PNG", save_all=True, append_images=[Image.new("L", grey.size)]
        ),
        "turned.jpg": encoded(grey.rotate(180), "JPEG", exif=exif, quality=95),
        "palette.png": encoded(palette, "PNG", transparency=b"\xff" * 256),
        "alpha.png": encoded(transparent, "PNG"),
        "grey-alpha.png": encoded(transparent.convert("LA"), "PNG"),
    }
