"""Feed a photograph to any model with one image-like input, and draw what comes out."""

from __future__ import annotations

import colorsys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from deploy.mil.blobs import Array
from deploy.mil.interface import Feature, draw_image
from deploy.mil.model import MilModel
from nailcore.errors import DataError
from nailcore.preprocess import letterbox
from nailcore.storage import replacing, write_bytes

Pixels = npt.NDArray[np.uint8]
Layout = Literal["nchw", "nhwc"]
_COLOURS_FROM = 0.93  # hue of the first class after the background: a red that shows on skin
_OPACITY = 0.55


@dataclass(frozen=True)
class Feeding:
    """How a photograph becomes an input; image inputs take only the size and the fit."""

    scale: tuple[float, ...] = (1 / 255,)  # tensor inputs: pixel * scale + bias, one value or one per channel
    bias: tuple[float, ...] = (0.0,)
    layout: Layout | None = None  # None: found from the shape
    keep_aspect: bool = True  # pad rather than stretch
    size: tuple[int, int] | None = None  # (height, width) for flexible inputs


@dataclass(frozen=True)
class Fed:
    """What a model was given, for people to read."""

    inputs: dict[str, Array]
    shown: Pixels  # (H, W, 3) RGB at the input's size
    layout: Layout
    notes: tuple[str, ...]


def feed_photo(model: MilModel, photo: Pixels, feeding: Feeding) -> Fed:
    """Resize an (H, W, 3) RGB photograph to the model's input and convert it as the model expects.

    Raises:
        DataError: the model has no input that a photograph fits, or needs others besides it.
    """
    feature = _find_input(model)
    layout, channels, (height, width) = _find_layout(feature, feeding)
    shown = _resize(photo, height, width, keep_aspect=feeding.keep_aspect)
    fit = "aspect kept, padded with grey" if feeding.keep_aspect else "stretched"
    notes = [f"Photograph {photo.shape[1]}×{photo.shape[0]} px resized to {width}×{height} px, {fit}."]
    grey = np.rint(shown @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    if feature.image is not None:
        space = feature.image.color_space
        notes.append(f"'{feature.name}' is an image input ({space}): pixels 0..255; the model scales them.")
        value: Array = shown if feature.image.channels == 3 else grey
        return Fed({feature.name: value}, shown, layout, tuple(notes))
    pixels = (shown if channels == 3 else grey[..., None]).astype(np.float32)
    scale, bias = _per_channel(feeding.scale, channels, "scale"), _per_channel(feeding.bias, channels, "bias")
    value = pixels * scale + bias
    if layout == "nchw":
        value = value.transpose(2, 0, 1)
    value = np.ascontiguousarray(value.reshape(_full_shape(feature, value.shape)))
    order = "RGB" if channels == 3 else "grey"
    notes.append(
        f"'{feature.name}' is a tensor input: {order} {layout.upper()} {value.shape}, pixel × {_show(scale)} "
        f"+ {_show(bias)}. --scale, --bias and --layout change that."
    )
    return Fed({feature.name: value}, shown, layout, tuple(notes))


def _find_input(model: MilModel) -> Feature:
    needed = [f for f in model.inputs if f.default is None]
    if len(needed) != 1:
        names = ", ".join(f"'{f.name}' {f.shape}" for f in needed)
        raise DataError(
            f"{model.path.name} needs {len(needed)} inputs ({names}); a photograph can be only one.",
            hint="Run it from Python: deploy.mil.load_package(path).run({...}).",
        )
    return needed[0]


def _find_layout(feature: Feature, feeding: Feeding) -> tuple[Layout, int, tuple[int, int]]:
    if feature.image is not None:
        size = feeding.size or (feature.image.height_px, feature.image.width_px)
        return "nchw", feature.image.channels, size
    shape = feature.shape[1:] if len(feature.shape) == 4 else feature.shape
    if len(shape) != 3 or (len(feature.shape) == 4 and feature.shape[0] != 1):
        raise DataError(f"Input '{feature.name}' has shape {feature.shape}, which no photograph fits.")
    layouts: list[Layout] = [feeding.layout] if feeding.layout else ["nchw", "nhwc"]
    for layout in layouts:
        channels = shape[0] if layout == "nchw" else shape[2]
        if channels in (1, 3):
            found = shape[1:] if layout == "nchw" else shape[:2]
            return layout, channels, feeding.size or (found[0], found[1])
    raise DataError(f"Input '{feature.name}' of shape {feature.shape} has neither 1 nor 3 channels.")


def _full_shape(feature: Feature, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape) if len(feature.shape) == 4 else shape


def _resize(photo: Pixels, height: int, width: int, *, keep_aspect: bool) -> Pixels:
    import cv2

    if min(height, width) < 1:
        raise DataError(f"an input of {width}×{height} px")
    if keep_aspect:
        return letterbox(photo, height, width)
    smaller = height * width < photo.shape[0] * photo.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(photo, (width, height), interpolation=method), np.uint8)


def _per_channel(values: tuple[float, ...], channels: int, name: str) -> npt.NDArray[np.float32]:
    if len(values) not in (1, channels):
        raise DataError(f"{name} has {len(values)} values for {channels} channels.")
    return np.array(values, np.float32)


def _show(values: npt.NDArray[np.float32]) -> str:
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"({text})"


def label_map(name: str, value: Array, layout: Layout) -> tuple[npt.NDArray[np.int64], str] | None:
    """Classes per pixel (h, w) of an output that is a map, and how they were found; None for others."""
    if value.dtype.kind not in "fiu":
        return None
    planes = value[0] if value.ndim == 4 and value.shape[0] == 1 else value
    if planes.ndim == 3 and planes.shape[0] == 1 and value.ndim == 3:
        planes = planes[0]  # (1, h, w)
    if planes.ndim == 3:
        axis = 0 if layout == "nchw" else 2
        count = planes.shape[axis]
        if count >= 2:
            return planes.argmax(axis).astype(np.int64), f"argmax of {count} channels of '{name}'"
        planes = planes.squeeze(axis)
    if planes.ndim != 2 or min(planes.shape) < 2:
        return None
    if planes.dtype.kind in "iu":
        return planes.astype(np.int64), f"classes of '{name}'"
    limit = 0.5 if planes.min() >= 0 and planes.max() <= 1 else 0.0
    return (planes > limit).astype(np.int64), f"'{name}' > {limit:g}"


def draw_labels(shown: Pixels, labels: npt.NDArray[np.int64]) -> Pixels:
    """Classes over the input image: 0 stays as it is, every other class has its own colour."""
    import cv2

    height, width = shown.shape[:2]
    large = cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    count = int(labels.max()) + 1 if labels.size else 1
    colours = np.array(
        [(0.0, 0.0, 0.0)]
        + [colorsys.hsv_to_rgb((_COLOURS_FROM + i * 0.381966) % 1, 0.85, 1.0) for i in range(count - 1)]
    )
    tint = 255 * colours[np.clip(large, 0, count - 1)]
    mixed = shown * (1 - _OPACITY) + tint * _OPACITY
    return np.where((large > 0)[..., None], np.rint(mixed), shown).astype(np.uint8)


def save_results(
    folder: Path, stem: str, fed: Fed, outputs: dict[str, Array], features: tuple[Feature, ...] = ()
) -> list[Path]:
    """Write all outputs as one .npz; image outputs as pictures, maps as overlays; returns the files."""
    target = folder / f"{stem}.npz"
    with replacing(target) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        for name, value in outputs.items():  # np.savez takes keywords, and an output may be called "file"
            with archive.open(f"{_safe(name)}.npy", "w") as stream:
                np.lib.format.write_array(stream, value, allow_pickle=False)  # type: ignore[no-untyped-call]
    written = [target]
    images = {feature.name: feature for feature in features if feature.image is not None}
    for name, value in outputs.items():
        picture = _picture(name, value, fed, images.get(name))
        if picture is not None:
            path = folder / f"{stem}.{_safe(name)}.png"
            write_bytes(path, _encode(picture, name))
            written.append(path)
    return written


def _picture(name: str, value: Array, fed: Fed, image: Feature | None) -> Array | None:
    """(H, W, 3) RGB or (H, W) uint8: the image itself, or classes over the photograph; None for others."""
    if image is not None:
        return draw_image(image, value)
    found = label_map(name, value, fed.layout)
    return None if found is None else draw_labels(fed.shown, found[0])


def _encode(picture: Array, name: str) -> bytes:
    import cv2

    done, data = cv2.imencode(
        ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    )
    if not done:
        raise DataError(f"The picture of '{name}' could not be encoded.")
    return data.tobytes()


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
