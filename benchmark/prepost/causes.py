"""Why two renderings of a photograph differ: known mistakes are made on purpose, the best fit is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmark.prepost.images import CHANNEL_ORDERS, estimate_shift, mean_abs
from nailcore.preprocess import PAD_VALUE, Letterbox, letterbox

RGB = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Resample = Callable[[F32, int, int], F32]  # photo, width, height

MIN_EXPLAINED = 0.6  # a cause must account for this share of the mean difference to be named
_REC709 = np.array([[1, 0, 1.5748], [1, -0.1873, -0.4681], [1, 1.8556, 0]])
_REC601 = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
_P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])


@dataclass(frozen=True)
class Cause:
    """A known mistake that reproduces what was found."""

    name: str
    residual: float  # mean difference left after it, in code values
    explained: float  # share of the mean difference it accounts for, 0..1

    def describe(self) -> str:
        """One sentence for people."""
        return (
            f"Most likely cause: {self.name}; it reproduces {100 * self.explained:.0f} % of the difference "
            f"({self.residual:.2g} code values remain)."
        )


@dataclass(frozen=True)
class Source:
    """What is known of a photograph, for making mistakes on it.

    ``stored``: its pixels without the EXIF rotation, None when there is none to ignore. ``alpha``:
    (H, W) uint8, None for an opaque photo. ``size``: (height, width) of the network's input, None for
    the decoding stage, where nothing is resized.
    """

    photo: RGB
    size: tuple[int, int] | None
    stored: RGB | None = None
    alpha: npt.NDArray[np.uint8] | None = None

    def render(self, photo: npt.NDArray[np.generic] | None = None) -> F32:
        """A photo as it would be at this stage: letterboxed, or as it is."""
        image = self.photo if photo is None else photo
        if self.size is None:
            return image.astype(np.float32)
        rounded = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return letterbox(np.ascontiguousarray(rounded), *self.size).astype(np.float32)


def find_cause(reference: npt.NDArray[np.generic], found: npt.NDArray[np.generic], source: Source) -> str:
    """The sentence of the best cause, "" when none fits; see :func:`rank_causes`."""
    causes = rank_causes(reference, found, source)
    return causes[0].describe() if causes else ""


def rank_causes(
    reference: npt.NDArray[np.generic], found: npt.NDArray[np.generic], source: Source
) -> list[Cause]:
    """All causes that explain enough, best first.

    ``reference`` and ``found`` are (H, W, 3); ``found`` may have another shape, which only a turned or
    differently sized photo explains.
    """
    a, b = reference.astype(np.float32), found.astype(np.float32)
    total = mean_abs(a, b) if a.shape == b.shape else 255.0
    if total == 0:
        return []
    whole = bool((b == np.rint(b)).all())  # it was uint8: so would the mistake's result be
    causes = []
    for name, image in _list_hypotheses(a, b, source):
        if image.shape == b.shape:
            residual = mean_abs(np.rint(image) if whole else image, b)
            causes.append(Cause(name, residual, 1 - residual / total))
    # Of causes that fit alike the first in the list is the more common one: sorting is stable.
    causes.sort(key=lambda cause: round(cause.residual, 2))
    return [cause for cause in causes if cause.explained >= MIN_EXPLAINED]


def _list_hypotheses(a: F32, b: F32, source: Source) -> Iterator[tuple[str, F32]]:
    yield from _turned(b, source)
    if a.shape == b.shape:
        yield from _recoloured(a, source)
        yield from _wrapped(a, b, source)
        if source.size is not None:
            yield from _placed(b, source)
        yield from _shifted(a, b, source)
        if source.size is not None:
            yield from _cropped(source)
            yield from _resampled(source)
        yield from _rescaled(a, b)
        yield from _chroma(a, b)


def _turned(b: F32, source: Source) -> Iterator[tuple[str, F32]]:
    if source.stored is not None:
        yield "EXIF orientation ignored", source.render(source.stored)
    photo = source.photo
    turned = {
        "mirrored left to right": photo[:, ::-1],
        "upside down (mirrored top to bottom)": photo[::-1],
        "turned by 180°": photo[::-1, ::-1],
        "turned by 90° clockwise": np.rot90(photo, -1),
        "turned by 90° counter-clockwise": np.rot90(photo),
        "rows and columns swapped (transposed)": photo.swapaxes(0, 1),
    }
    for name, image in turned.items():
        yield name, source.render(image)


def to_linear(values: npt.NDArray[np.generic]) -> F32:
    """sRGB code values -> linear light, both 0..255."""
    v = np.asarray(values, np.float32) / 255
    return np.asarray(255 * np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4), np.float32)


def from_linear(values: npt.NDArray[np.generic]) -> F32:
    """Linear light -> sRGB code values, both 0..255."""
    v = np.clip(np.asarray(values, np.float32) / 255, 0, 1)
    return np.asarray(255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055), np.float32)


def _recoloured(a: F32, source: Source) -> Iterator[tuple[str, F32]]:
    for name, order in CHANNEL_ORDERS.items():
        if name != "RGB":
            kind = "channels reversed" if name == "BGR" else "channels permuted"
            yield f"{kind} ({name} instead of RGB)", a[..., list(order)]
    yield "linear light where sRGB is expected (gamma decoded)", to_linear(a)
    yield "sRGB curve applied twice (gamma encoded again)", from_linear(a)
    yield (
        "linear light where sRGB is expected (gamma decoded before resizing)",
        source.render(to_linear(source.photo)),
    )
    yield (
        "sRGB curve applied twice (gamma encoded again before resizing)",
        source.render(from_linear(source.photo)),
    )
    for what, matrix in {
        "BT.709 matrix on BT.601 video": _REC709 @ np.linalg.inv(_REC601),
        "BT.601 matrix on BT.709 video": _REC601 @ np.linalg.inv(_REC709),
    }.items():
        yield what, np.clip(a @ matrix.T.astype(np.float32), 0, 255)
    for what, matrix in {
        "colour profile applied (Display P3 converted to sRGB)": _P3_TO_SRGB,
        "colour profile applied (sRGB converted to Display P3)": np.linalg.inv(_P3_TO_SRGB),
    }.items():
        yield what, from_linear(np.clip(to_linear(a) @ matrix.T.astype(np.float32), 0, 255))
    if source.alpha is not None:
        share = source.alpha[..., None].astype(np.float32) / 255
        yield "alpha multiplied into the colours", source.render(source.photo * share)
        yield "alpha blended over white", source.render(source.photo * share + 255 * (1 - share))


def _wrapped(a: F32, b: F32, source: Source) -> Iterator[tuple[str, F32]]:
    """Values that left 0..255 and came back at the other end: the difference jumps by 256."""
    regions = [(slice(None), slice(None))]
    if source.size is not None:  # padding may have been added after the mistake
        regions.append(find_region(source.photo.shape, source.size))
    for region in regions:
        difference = np.rint(b[region] - a[region]).astype(np.int64)
        offset = int(np.bincount(np.ravel(difference % 256), minlength=256).argmax())
        turns = np.rint((difference - offset) / 256)
        counts = np.unique(turns, return_counts=True)[1]
        if len(counts) > 1 and np.sort(counts)[-2] >= 5e-4 * turns.size:
            wrapped = a.copy()
            wrapped[region] += offset + 256 * turns.astype(np.float32)
            yield "values wrap around at 256 (integer overflow)", wrapped


def _shifted(a: F32, b: F32, source: Source) -> Iterator[tuple[str, F32]]:
    x, y = estimate_shift(a, b)
    whole = {(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} | {(round(x), round(y))}
    halves = {(dx / 2, dy / 2) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    for dx, dy in sorted(whole | halves, key=lambda step: (abs(step[0]) + abs(step[1]), step)):
        if (dx, dy) == (0, 0) or max(abs(dx), abs(dy)) > 64:
            continue
        name = f"shifted by {_name_step(dx, dy)}"
        yield name, _translate(a, dx, dy)
        if source.size is not None:  # the content moved inside padding that did not
            rows, columns = find_region(source.photo.shape[:2], source.size)
            moved = a.copy()
            moved[rows, columns] = _translate(a[rows, columns], dx, dy)
            yield name, moved


def _name_step(dx: float, dy: float) -> str:
    parts = []
    for step, positive, negative in ((dx, "right", "left"), (dy, "down", "up")):
        if step:
            length = abs(step)
            words = {0.5: "half a pixel", 1: "one pixel"}.get(length, f"{length:g} pixels")
            parts.append(f"{words} {positive if step > 0 else negative}")
    return " and ".join(parts)


def _translate(image: F32, dx: float, dy: float) -> F32:
    import cv2

    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    size = (image.shape[1], image.shape[0])
    moved = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def find_region(photo: tuple[int, ...], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a letterboxed (height, width) photo inside its input."""
    box = Letterbox(photo[0], photo[1], *size)
    (height, width), (top, left) = box.scaled, box.origin
    return slice(top, top + height), slice(left, left + width)


def _resample(kernel: int) -> Resample:
    import cv2

    def resample(photo: F32, width: int, height: int) -> F32:
        return np.asarray(cv2.resize(photo, (width, height), interpolation=kernel), np.float32)

    return resample


def _at_corners(photo: F32, width: int, height: int) -> F32:
    """Bilinear, corner pixels on corner pixels (align_corners)."""
    return _sample(photo, width, height, lambda n, to, side: n * ((side - 1) / max(to - 1, 1)))


def _at_origins(photo: F32, width: int, height: int) -> F32:
    """Bilinear from pixel · scale, without half-pixel centres."""
    return _sample(photo, width, height, lambda n, to, side: n * (side / to))


def _sample(
    photo: F32, width: int, height: int, place: Callable[[npt.NDArray[np.float64], int, int], object]
) -> F32:
    import cv2

    columns = place(np.arange(width, dtype=np.float64), width, photo.shape[1])
    rows = place(np.arange(height, dtype=np.float64), height, photo.shape[0])
    x, y = np.meshgrid(np.asarray(columns, np.float32), np.asarray(rows, np.float32))
    return np.asarray(cv2.remap(photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _in_linear_light(photo: F32, width: int, height: int) -> F32:
    import cv2

    return from_linear(cv2.resize(to_linear(photo), (width, height), interpolation=cv2.INTER_AREA))


def _resampled(source: Source) -> Iterator[tuple[str, F32]]:
    """The right place, another way of averaging."""
    import cv2

    shrinking = (
        min(side / full for side, full in zip(source.size or (), source.photo.shape, strict=False)) < 1
    )
    ways: dict[str, Resample] = {
        "averaged in linear light instead of in code values": _in_linear_light,
        "half-pixel centres ignored (bilinear from the pixels' origins)": _at_origins,
        "corners aligned (bilinear, align_corners)": _at_corners,
        "nearest pixel instead of an average": _resample(cv2.INTER_NEAREST),
        "bicubic resampling": _resample(cv2.INTER_CUBIC),
        "Lanczos resampling": _resample(cv2.INTER_LANCZOS4),
    }
    if shrinking:
        ways["bilinear sampling without averaging (aliasing)"] = _resample(cv2.INTER_LINEAR)
    for name, way in ways.items():
        yield name, _place(source, source.photo, way)


def _place(source: Source, photo: RGB, resample: Resample) -> F32:
    """The letterbox with another resampling."""
    assert source.size is not None  # noqa: S101 - only called for stages that resize
    box = Letterbox(photo.shape[0], photo.shape[1], *source.size)
    canvas = np.full((*source.size, 3), PAD_VALUE, np.float32)
    region = find_region(photo.shape[:2], source.size)
    canvas[region] = np.clip(resample(photo.astype(np.float32), box.scaled[1], box.scaled[0]), 0, 255)
    return canvas


def _placed(b: F32, source: Source) -> Iterator[tuple[str, F32]]:
    """The right pixels in another place: squashed, cropped to fill, not centred, other padding."""
    import cv2

    assert source.size is not None  # noqa: S101
    height, width = source.size
    photo = source.photo
    full_height, full_width = photo.shape[:2]
    shrinking = Letterbox(full_height, full_width, height, width).scale < 1
    for kernel in (cv2.INTER_AREA, cv2.INTER_LINEAR) if shrinking else (cv2.INTER_LINEAR,):
        squashed = cv2.resize(photo, (width, height), interpolation=kernel)
        yield "squashed to the input's size instead of letterboxed", squashed.astype(np.float32)
    side = min(full_height / height, full_width / width)
    rows, columns = round(height * side), round(width * side)
    top, left = (full_height - rows) // 2, (full_width - columns) // 2
    middle = photo[top : top + rows, left : left + columns]
    filled = cv2.resize(middle, (width, height), interpolation=cv2.INTER_AREA)
    yield "cropped to fill the input instead of letterboxed", filled.astype(np.float32)
    right = source.render()
    region = find_region(photo.shape[:2], source.size)
    content = right[region]
    corner = np.full_like(right, PAD_VALUE)
    corner[: content.shape[0], : content.shape[1]] = content
    yield "not centred: the photo lies in the top left corner", corner
    padding = np.ones((height, width), bool)
    padding[region] = False
    if padding.any():
        value = float(np.median(b[padding]))
        if round(value) != PAD_VALUE:
            repadded = np.full_like(right, value)
            repadded[region] = content
            yield f"padded with {value:g} instead of {PAD_VALUE}", repadded


def _cropped(source: Source) -> Iterator[tuple[str, F32]]:
    photo = source.photo
    if min(photo.shape[:2]) < 3:
        return
    for name, image in {
        "top": photo[1:],
        "left": photo[:, 1:],
        "bottom": photo[:-1],
        "right": photo[:, :-1],
        "top and left": photo[1:, 1:],
        "bottom and right": photo[:-1, :-1],
    }.items():
        yield f"cropped by one photo pixel at the {name} (off by one)", source.render(image)


_SCALES = {  # found = a · reference + b
    "divided by 255 (0..1); the graph normalises by itself": (1 / 255, 0.0),
    "scaled to -1..1; the graph normalises by itself": (1 / 127.5, -1.0),
    "mean subtracted; the graph normalises by itself": (1.0, -127.5),
    "squeezed into video range 16..235": (219 / 255, 16.0),
    "stretched from video range 16..235": (255 / 219, -16 * 255 / 219),
}
_IMAGENET_MEAN, _IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def _rescaled(a: F32, b: F32) -> Iterator[tuple[str, F32]]:
    """Known normalisations, then the straight line that fits best."""
    for name, (scale, offset) in _SCALES.items():
        rescaled = a * np.float32(scale) + np.float32(offset)
        yield f"values {name}", rescaled if "video" not in name else np.clip(rescaled, 0, 255)
    imagenet = (a / 255 - _IMAGENET_MEAN) / _IMAGENET_STD
    yield "values normalised with ImageNet's mean and deviation; the graph normalises by itself", imagenet
    inside = (b > b.min()) & (b < b.max())  # what may have been clipped would bend the line
    if np.count_nonzero(inside) > 100 and a[inside].std() > 1:
        scale, offset = np.polyfit(a[inside], b[inside], 1)
        line = np.clip(scale * a + offset, b.min(), b.max()).astype(np.float32)
        if abs(scale - 1) > 0.01 or abs(offset) > 1:
            yield f"values scaled by {scale:.4g} and moved by {offset:+.4g}", line


def _chroma(a: F32, b: F32) -> Iterator[tuple[str, F32]]:
    """Decoders agree on a JPEG's luma and may interpolate its halved chroma otherwise."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    luma = ((b - a) @ weights)[..., None]
    if mean_abs(a, b) < 8:
        yield "chroma alone differs (JPEG chroma upsampling or rounding of the decoder)", b - luma
