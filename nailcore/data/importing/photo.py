"""Photographs of any kind brought into a data folder: upright, 8-bit, without metadata."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nailcore.data.labels import Point
from nailcore.data.shapes import Mask, Rle, Shape, decode_rle, encode_rle
from nailcore.errors import DataError
from nailcore.storage import write_bytes

JPEG_QUALITY = 95  # of photos that must be encoded again; without chroma subsampling
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_KEPT_MODES = ("RGB", "L")  # stored as they are; everything else is decoded to 8-bit RGB


@dataclass(frozen=True)
class PhotoInfo:
    """What a photo's header says."""

    path: Path
    kind: str  # Pillow's name of the format: JPEG, PNG, ...
    mode: str  # Pillow's name: RGB, L, RGBA, CMYK, I;16, P, ...; "RGB;16" for 16-bit colour
    stored: tuple[int, int]  # width, height as stored
    orientation: int  # EXIF, 1..8

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after the EXIF orientation."""
        return self.stored[::-1] if self.orientation in _TURNED else self.stored


def inspect_photo(path: Path) -> PhotoInfo:
    """Read a photo's header.

    Raises:
        DataError: missing, empty, or of no format that Pillow knows.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            orientation = int(image.getexif().get(_ORIENTATION, 1) or 1)
            kind, mode, size = str(image.format), image.mode, image.size
    except UnidentifiedImageError as error:
        raise unreadable(path) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}.", hint="Scale it down, or leave it out.") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        if not path.is_file():
            raise DataError(f"{path}: cannot be read: there is no such file.") from error
        raise unreadable(path, str(error)) from error
    if kind == "TIFF":  # Pillow and OpenCV turn these themselves
        orientation = 1
    if kind == "MPO":  # a JPEG with more pictures behind the first: depth, gain map, second lens
        kind = "JPEG"
    if kind == "PNG" and mode in ("RGB", "RGBA") and _png_bit_depth(path) == 16:
        mode = f"{mode};16"
    return PhotoInfo(path, kind, mode, size, orientation if 1 <= orientation <= 8 else 1)


def unreadable(path: Path, reason: str = "") -> DataError:
    """The error of a file that is no image, or only a part of one."""
    size = path.stat().st_size if path.is_file() else 0
    return DataError(
        f"{path}: not a readable image ({size} bytes){f': {reason}' if reason else ''}.",
        hint="It is damaged, cut short or of another kind: replace it, or leave it out with --skip-bad.",
    )


def _png_bit_depth(path: Path) -> int:
    with path.open("rb") as stream:
        header = stream.read(25)  # signature, length, "IHDR", width, height, bit depth
    return header[24] if len(header) == 25 else 0


def check_pixels(info: PhotoInfo) -> None:
    """Decode every pixel with Pillow, which notices missing ends; raises DataError."""
    from PIL import Image

    try:
        with Image.open(info.path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise unreadable(info.path, str(error)) from error


def load_pixels(info: PhotoInfo) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB uint8, upright: alpha is dropped, of 16 bits the upper 8 are kept, grey is repeated."""
    import cv2

    data = np.fromfile(info.path, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
    if pixels is None:
        raise unreadable(info.path)
    return turn_array(np.asarray(pixels, np.uint8), info.orientation)


# -- orientation -------------------------------------------------------------------------------------
def turn_array(stored: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """(H, W, ...) as stored -> upright, for an EXIF orientation 1..8."""
    array = np.swapaxes(stored, 0, 1) if orientation in _TURNED else stored
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def turn_point(point: Point, size: tuple[int, int], orientation: int) -> Point:
    """A point of the stored image, whose (width, height) are given, in the upright one."""
    x, y = point
    width, height = size
    if orientation in _TURNED:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = width - x
    if orientation in (3, 4, 7, 8):
        y = height - y
    return (x, y)


def turn_shape(shape: Shape, size: tuple[int, int], orientation: int) -> Shape:
    """A nail's shape of the stored image in the upright one."""
    if isinstance(shape, Rle):
        mask: Mask = turn_array(decode_rle(shape).astype(np.uint8), orientation) > 0
        return encode_rle(mask)
    turned = []
    for polygon in shape:
        pairs = zip(polygon[::2], polygon[1::2], strict=True)
        turned.append([v for pair in pairs for v in turn_point(pair, size, orientation)])
    return turned


# -- writing -----------------------------------------------------------------------------------------
def write_photo(info: PhotoInfo, folder: Path, stem: str) -> tuple[str, str]:
    """Write a photo into ``folder``; returns its file name there and what was done to it.

    A JPEG or PNG that stands upright in 8-bit RGB or grey keeps its very pixels: only metadata goes.

    Raises:
        DataError: it cannot be decoded to its last row.
    """
    check_pixels(info)
    if info.orientation == 1 and info.mode in _KEPT_MODES and info.kind in ("JPEG", "PNG"):
        data = info.path.read_bytes()
        bare = strip_jpeg(data) if info.kind == "JPEG" else strip_png(data)
        if bare is not None:
            name = f"{stem}{'.jpg' if info.kind == 'JPEG' else '.png'}"
            write_bytes(folder / name, bare)
            return name, "copied" if bare == data else "metadata removed"
    import cv2

    pixels = cv2.cvtColor(load_pixels(info), cv2.COLOR_RGB2BGR)
    if info.kind == "JPEG":
        name, settings = f"{stem}.jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    else:
        name, settings = f"{stem}.png", []
    done, encoded = cv2.imencode(Path(name).suffix, pixels, settings)
    if not done:
        raise DataError(f"{info.path}: its {pixels.shape} pixels could not be encoded.")
    write_bytes(folder / name, encoded.tobytes())
    changes = [f"turned upright (EXIF orientation {info.orientation})"] if info.orientation != 1 else []
    changes += [f"from {info.mode} to 8-bit RGB"] if info.mode not in _KEPT_MODES else []
    changes += [f"from {info.kind} to PNG"] if info.kind not in ("JPEG", "PNG") else []
    return name, ", ".join([*changes, "encoded again"])


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither stuffed, a restart nor a fill byte


def strip_jpeg(data: bytes) -> bytes | None:
    """A JPEG without EXIF, XMP, comments and makers' notes; None when its segments cannot be followed.

    Kept: JFIF, colour profiles and Adobe's marker, which decide how the pixels are read. What lies behind the
    picture's end (a motion photo's film, further pictures, each with metadata of its own) goes as well.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept, at = [data[:2]], 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xD9:
            return b"".join([*kept, data[at : at + 2]])
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + length]
        if length < 2 or len(segment) != 2 + length:
            return None
        profile = marker == 0xE2 and segment[4:].startswith(b"ICC_PROFILE")
        extra = 0xE1 <= marker <= 0xEF or marker == 0xFE
        if not extra or profile or marker == 0xEE:
            kept.append(segment)
        at += 2 + length
        if marker == 0xDA:  # a scan: pixels up to the next marker; a progressive JPEG has several
            end = _MARKER.search(data, at)
            if end is None:
                return None
            kept.append(data[at : end.start()])
            at = end.start()
    return None


_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME")


def strip_png(data: bytes) -> bytes | None:
    """A PNG without EXIF, texts and times; None when its chunks cannot be followed."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at : at + 12 + length]
        if len(chunk) != 12 + length:
            return None
        if chunk[4:8] not in _PNG_METADATA:
            kept.append(chunk)
        at += 12 + length
        if chunk[4:8] == b"IEND":
            return b"".join(kept)
    return None
