"""Shapes of nails: polygons and COCO's run lengths, and the pixels they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

_SUPERSAMPLING = 4  # polygons are filled at this resolution: 1/8 px is the worst error of an edge

Mask = npt.NDArray[np.bool_]
Polygon = Annotated[list[float], Field(min_length=6)]  # x0, y0, x1, y1, ...


class Rle(BaseModel):
    """Run lengths down the columns, starting with background; counts as numbers or COCO's text form."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    size: tuple[int, int]  # height, width
    counts: str | list[Annotated[int, Field(ge=0)]]


Shape = Rle | list[Polygon]


def fill_shape(shape: Shape, height: int, width: int) -> Mask:
    """(H, W) pixels of one nail, whatever lies over it; raises ValueError for run lengths that do not fit."""
    if not isinstance(shape, Rle):
        return fill_polygons(shape, height, width)
    if shape.size != (height, width):
        h, w = shape.size
        raise ValueError(f"its run lengths are for {w}×{h} px, the image is {width}×{height} px")
    try:
        return decode_rle(shape)
    except ValueError as error:
        raise ValueError(f"damaged run lengths: {error}") from error


# -- run lengths ---------------------------------------------------------------------------------
def encode_rle(mask: Mask) -> Rle:
    """Run lengths of an (H, W) mask, in COCO's compressed text form."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    bounds = [0, *edges.tolist()]
    if bounds[-1] != flat.size:
        bounds.append(flat.size)
    counts = np.diff(bounds).tolist()
    return Rle(size=(mask.shape[0], mask.shape[1]), counts=_compress(counts))


def decode_rle(rle: Rle) -> Mask:
    """(H, W) mask; raises ValueError when the runs do not fill the declared size."""
    counts = _decompress(rle.counts) if isinstance(rle.counts, str) else rle.counts
    height, width = rle.size
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"its runs cover {sum(counts)} pixels of {height}×{width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.asarray(np.repeat(values, counts).reshape((width, height)).T)


def _compress(counts: Sequence[int]) -> str:
    """COCO's text form: 5 bits a character, from the third run on as differences two runs back."""
    text = []
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != -1 if bits & 0x10 else x != 0
            text.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(text)


def _decompress(text: str) -> list[int]:
    counts: list[int] = []
    x = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"'{character}' does not occur in COCO's run lengths")
        x |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                x -= 1 << shift
            counts.append(x + counts[-2] if len(counts) > 2 else x)
            x = shift = 0
    if shift:
        raise ValueError("the run lengths end in the middle of a number")
    return counts


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """(H, W) pixels at least half inside the polygons (union; pixel (x, y) covers [x, x+1)×[y, y+1))."""
    import cv2

    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        low = np.maximum(np.floor(points.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int), (width, height))
        if (high <= low).any():
            continue
        size = (high - low) * _SUPERSAMPLING
        canvas = np.zeros((size[1], size[0]), np.uint8)
        # fillPoly's integer coordinates are pixel centres.
        fine = np.round(((points - low) * _SUPERSAMPLING - 0.5) * 256).astype(np.int32)
        cv2.fillPoly(canvas, [fine], 255, lineType=cv2.LINE_8, shift=8)
        small = cv2.resize(canvas, tuple(int(v) for v in high - low), interpolation=cv2.INTER_AREA)
        mask[low[1] : high[1], low[0] : high[0]] |= np.asarray(small) >= 128
    return mask


def span_points(
    piece: Mask, direction: npt.NDArray[np.float64]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Base and tip of a nail (H, W) whose direction (2,) is known: where the line through its middle ends.

    Raises ValueError when the direction is no vector.
    """
    length = float(np.hypot(*direction))
    if direction.shape != (2,) or not np.isfinite(length) or length < 1e-6:
        raise ValueError(f"a direction is two numbers, found {direction.tolist()}")
    unit = direction / length
    rows, columns = np.nonzero(piece)
    points = np.stack([columns, rows], 1) + 0.5
    centre = points.mean(0)
    along = (points - centre) @ unit
    across = np.abs((points - centre) @ np.array([-unit[1], unit[0]]))
    near = along[across <= max(1.0, float(across.min()))]
    base, tip = centre + unit * near.min(), centre + unit * near.max()
    return (float(base[0]), float(base[1])), (float(tip[0]), float(tip[1]))


def distance_to(mask: Mask, point: tuple[float, float]) -> float:
    """Pixels from a point to the centre of the nearest pixel of a mask (H, W); infinite for an empty one."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return float("inf")
    return float(np.hypot(columns + 0.5 - point[0], rows + 0.5 - point[1]).min())
