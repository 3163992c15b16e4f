"""What a model says of its inputs and outputs: shapes, element types, colour spaces, allowed sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deploy.mil.blobs import Array
from deploy.mil.program import Constant, Program, Reference
from nailcore.errors import ConversionError, DataError

ColorSpace = Literal["RGB", "BGR", "GRAYSCALE", "GRAYSCALE_FLOAT16"]
_COLOR_SPACES: dict[int, ColorSpace] = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
_ARRAY_TYPES = {65568: "fp32", 65600: "fp64", 131104: "int32", 131080: "int8", 65552: "fp16"}


@dataclass(frozen=True)
class ImageSpec:
    """An image at the model's border; ``height_px`` and ``width_px`` are the default size."""

    color_space: ColorSpace
    height_px: int
    width_px: int
    # What the program itself does to the pixels first, per channel: x * scale + bias. ML programs
    # carry ImageType's scale and bias as operations, so these are told, never applied again.
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 3 if self.color_space in ("RGB", "BGR") else 1


@dataclass(frozen=True)
class Feature:
    """One input or output. ``shape`` is the default one; a flexible one may differ within ``ranges``."""

    name: str
    shape: tuple[int, ...]  # () when the file does not say (outputs of flexible models)
    dtype: str  # "fp32", "fp16", "int32", ...; "string" and "dictionary" for a classifier's outputs
    image: ImageSpec | None = None
    ranges: tuple[tuple[int, int | None], ...] = ()  # per dimension: lowest, highest (None: any)
    shapes: tuple[tuple[int, ...], ...] = ()  # the only shapes allowed, when enumerated
    default: float | None = None  # an optional input may be left out

    @property
    def flexible(self) -> bool:
        """Whether shapes other than ``shape`` are allowed."""
        return bool(self.ranges or self.shapes)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a shape that CoreML would refuse.

        Raises:
            DataError: naming what is allowed.
        """
        if self.shapes:
            allowed, fits = " or ".join(map(str, self.shapes)), shape in self.shapes
        elif self.ranges:
            allowed = ", ".join(f"{low}..{'any' if high is None else high}" for low, high in self.ranges)
            fits = len(shape) == len(self.ranges) and all(
                low <= size and (high is None or size <= high)
                for size, (low, high) in zip(shape, self.ranges, strict=True)
            )
        else:
            allowed, fits = str(self.shape), shape == self.shape
        if not fits:
            raise DataError(f"Input '{self.name}' has shape {shape}; allowed: {allowed}.")


def read_inputs(spec: Any, program: Program) -> tuple[Feature, ...]:
    """The inputs of the function that is executed."""
    described = {f.name: f for f in _description(spec, program).input}
    features = []
    for name, kind in program.block.inputs:
        if name not in described:
            raise ConversionError(f"Input '{name}' of the program is not described by the model.")
        feature = _read_feature(described[name], kind.dtype, kind.shape)
        if feature.image is not None:
            feature = _with_scale(feature, program)
        features.append(feature)
    return tuple(features)


def read_outputs(spec: Any, program: Program) -> tuple[Feature, ...]:
    """The outputs of the function that is executed, in the file's order."""
    kinds = {name: t for op in program.block.operations for name, t in op.outputs}
    kinds |= dict(program.block.inputs)
    described = {f.name: f for f in _description(spec, program).output}
    features = []
    for name in program.block.outputs:
        kind = kinds.get(name)
        dtype, shape = (kind.dtype, kind.shape) if kind else ("fp32", None)
        if name in described:
            features.append(_read_feature(described[name], dtype, shape))
        else:
            features.append(Feature(name, tuple(s or 0 for s in shape or ()), dtype))
    return tuple(features)


def _description(spec: Any, program: Program) -> Any:
    for function in spec.description.functions:
        if function.name == program.function:
            return function
    return spec.description


def _read_feature(proto: Any, dtype: str, shape: tuple[int | None, ...] | None) -> Feature:
    known = tuple(s or 0 for s in shape) if shape and None not in shape else ()
    kind = proto.type.WhichOneof("Type")
    if kind == "imageType":
        return _read_image(proto.name, proto.type.imageType, dtype)
    if kind == "multiArrayType":
        return _read_array(proto, known)
    if kind in ("int64Type", "stringType", "dictionaryType", "doubleType"):
        names = {"int64Type": "int64", "stringType": "string", "doubleType": "fp64"}
        return Feature(proto.name, known, names.get(kind, "dictionary"))
    raise ConversionError(f"'{proto.name}' is of a kind that is not supported ({kind}).")


def _read_array(proto: Any, known: tuple[int, ...]) -> Feature:
    array = proto.type.multiArrayType
    if array.dataType not in _ARRAY_TYPES:
        raise ConversionError(f"'{proto.name}' has an unsupported element type (code {array.dataType}).")
    default = None
    if proto.type.isOptional:
        which = array.WhichOneof("defaultOptionalValue")
        default = float(getattr(array, which)) if which else 0.0
    return Feature(
        proto.name,
        tuple(int(s) for s in array.shape) or known,
        _ARRAY_TYPES[array.dataType],
        ranges=tuple(
            (int(r.lowerBound), int(r.upperBound) if r.upperBound >= 0 else None)
            for r in array.shapeRange.sizeRanges
        ),
        shapes=tuple(tuple(int(s) for s in e.shape) for e in array.enumeratedShapes.shapes),
        default=default,
    )


def _read_image(name: str, image: Any, dtype: str) -> Feature:
    if image.colorSpace not in _COLOR_SPACES:
        raise ConversionError(f"Image '{name}' has an unsupported colour space (code {image.colorSpace}).")
    spec = ImageSpec(_COLOR_SPACES[image.colorSpace], int(image.height), int(image.width))
    channels = spec.channels
    ranges: tuple[tuple[int, int | None], ...] = ()
    if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        sides = [
            (int(r.lowerBound), int(r.upperBound) if r.upperBound >= 0 else None)
            for r in (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        ]
        ranges = ((1, 1), (channels, channels), *sides)
    shapes = tuple((1, channels, int(s.height), int(s.width)) for s in image.enumeratedSizes.sizes)
    shape = (1, channels, spec.height_px, spec.width_px)
    return Feature(name, shape, dtype, spec, ranges, shapes)


def _with_scale(feature: Feature, program: Program) -> Feature:
    """Find the multiplication and addition that ImageType's scale and bias became."""
    image = feature.image
    if image is None:
        return feature
    scale: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    name = feature.name
    while True:
        readers = [
            op for op in program.block.operations if any(Reference(name) in b for b in op.inputs.values())
        ]
        if len(readers) != 1:
            break
        op = readers[0]
        constant = _other_constant(op.inputs, name, program)
        if op.op == "cast":
            pass
        elif op.op == "mul" and scale is None and bias is None and constant is not None:
            scale = constant
        elif op.op in ("add", "sub") and bias is None and constant is not None:
            sign = 1.0 if op.op == "add" else -1.0
            bias = tuple(sign * v for v in constant)
        else:
            break
        name = op.name
    found = ImageSpec(image.color_space, image.height_px, image.width_px, scale or (1.0,), bias or (0.0,))
    return Feature(feature.name, feature.shape, feature.dtype, found, feature.ranges, feature.shapes)


def _other_constant(
    inputs: dict[str, tuple[Any, ...]], name: str, program: Program
) -> tuple[float, ...] | None:
    for bindings in inputs.values():
        for binding in bindings:
            constant = binding if isinstance(binding, Constant) else program.constants.get(binding.name)
            value = None if constant is None else constant.value
            if binding != Reference(name) and isinstance(value, np.ndarray) and value.size in (1, 3):
                return tuple(float(v) for v in value.reshape(-1))
    return None


def feed_image(feature: Feature, value: Array) -> Array:
    """Pixels in the layout of the program: (1, C, H, W) float32 in the model's channel order.

    Args:
        feature: an input with an image.
        value: uint8 (H, W, 3) RGB or (H, W) grey, with or without a leading batch of 1; or a float
            array (1, C, H, W) that already is what the program receives and is passed on as it is.

    Raises:
        DataError: another shape.
    """
    image = feature.image
    if image is None:
        raise TypeError(f"{feature.name} is not an image")
    if value.dtype != np.uint8:
        if value.ndim != 4 or value.shape[1] != image.channels:
            raise DataError(
                f"Input '{feature.name}' is an image: pass uint8 (H, W, 3) RGB, or floats "
                f"(1, {image.channels}, H, W); found {value.dtype} {value.shape}."
            )
        return value.astype(np.float32)
    wanted = 3 if image.channels == 3 else 2
    pixels = value[0] if value.ndim == wanted + 1 and value.shape[0] == 1 else value
    if pixels.ndim != wanted or (wanted == 3 and pixels.shape[2] != 3):
        layout = "(H, W, 3) RGB" if wanted == 3 else "(H, W) grey"
        raise DataError(f"Input '{feature.name}' takes a uint8 image {layout}; found {value.shape}.")
    planes = pixels[None] if wanted == 2 else pixels.transpose(2, 0, 1)
    if image.color_space == "BGR":
        planes = planes[::-1]
    return np.ascontiguousarray(planes[None], dtype=np.float32)


def draw_image(feature: Feature, value: Array) -> Array:
    """An image output as pixels: uint8, (H, W, 3) RGB or (H, W) grey, rounded and limited to 0..255.

    Args:
        feature: an output with an image.
        value: (1, C, H, W) in the model's channel order, as `MilModel.run` returns it.
    """
    image = feature.image
    if image is None:
        raise TypeError(f"{feature.name} is not an image")
    # A half-precision image holds 0..1, as Core Image reads it; the 8-bit ones hold code values.
    full = 255.0 if image.color_space == "GRAYSCALE_FLOAT16" else 1.0
    pixels = np.rint(np.nan_to_num(value[0].astype(np.float64) * full, nan=0.0)).clip(0, 255).astype(np.uint8)
    if image.channels == 1:
        return np.ascontiguousarray(pixels[0])
    planes = pixels[::-1] if image.color_space == "BGR" else pixels
    return np.ascontiguousarray(planes.transpose(1, 2, 0))
