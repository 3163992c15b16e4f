"""Photographs in every form a gallery holds, made from pixels: rotated, with alpha, 16 bit, grey, CMYK."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from nailcore.data.folder import ImageRecord, Sample

RGB = npt.NDArray[np.uint8]


def make_photo(height: int = 150, width: int = 210, seed: int = 0) -> RGB:
    """(H, W, 3) RGB with no symmetry in space, colour or tone, smooth enough for a JPEG."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width, 3))
    image = cv2.GaussianBlur(noise, (0, 0), 6)
    image = image / np.abs(image).max(axis=(0, 1)) * 110 + np.array([150, 115, 95])
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height * 0.3) ** 2 + (columns - width * 0.25) ** 2 < (height / 6) ** 2
    image[disc] = (235, 60, 40)
    image += cv2.GaussianBlur(rng.normal(size=(height, width, 1)), (0, 0), 1)[..., None] * 12
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def encode(suffix: str, pixels: npt.NDArray[np.generic], *flags: int) -> bytes:
    """Any array OpenCV can write, RGB(A) in, as file bytes."""
    array = pixels
    if pixels.ndim == 3:
        array = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(array), list(flags))
    assert done
    return data.tobytes()


def encode_jpeg(pixels: RGB, *, subsampled: bool = False) -> bytes:
    """A JPEG of quality 95 with full or halved chroma."""
    factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsampled else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    return encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, int(factor))


def add_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment that says how the stored pixels are to be turned (1..8)."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def turn_back(upright: RGB, orientation: int) -> RGB:
    """The pixels to store so that a reader who obeys the orientation sees ``upright``."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def encode_cmyk(pixels: RGB) -> bytes:
    """An Adobe CMYK JPEG: one scan per ink, each a grey JPEG's data, as OpenCV writes them."""
    key = pixels.max(axis=2)
    inks = [pixels[..., c] * 255.0 / np.maximum(key, 1) for c in range(3)] + [key.astype(np.float64)]
    planes = [encode(".jpg", np.rint(ink).astype(np.uint8), cv2.IMWRITE_JPEG_QUALITY, 98) for ink in inks]
    tables, scans = b"", b""
    for number, plane in enumerate(planes, 1):
        for marker, payload in list_segments(plane):
            if number == 1 and marker in (0xDB, 0xC4):
                tables += bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload
            if marker == 0xDA:
                scans += b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([number, 0]) + b"\0\x3f\0"
                scans += plane[plane.index(b"\xff\xda") + 10 : -2]
    height, width = pixels.shape[:2]
    frame = struct.pack(">BHHB", 8, height, width, 4) + b"".join(bytes([n, 0x11, 0]) for n in range(1, 5))
    adobe = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)
    parts = [(0xEE, adobe), (0xC0, frame)]
    head = b"".join(bytes([0xFF, m]) + struct.pack(">H", len(p) + 2) + p for m, p in parts)
    return b"\xff\xd8" + head + tables + scans + b"\xff\xd9"


def list_segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """(marker, payload) up to the scan's header."""
    at, found = 2, []
    while True:
        marker, length = jpeg[at + 1], struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        found.append((marker, jpeg[at + 4 : at + 2 + length]))
        if marker == 0xDA:
            return found
        at += 2 + length


def make_sample(folder: Path, name: str, file: bytes) -> Sample:
    """A file as an unlabelled sample."""
    suffix = ".jpg" if file[:2] == b"\xff\xd8" else ".png"
    path = folder / f"{name}{suffix}"
    path.write_bytes(file)
    return Sample(name, path, None, ImageRecord())
