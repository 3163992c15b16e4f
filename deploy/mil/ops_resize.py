"""MIL resizing, cropping with resizing, and resampling at coordinates."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from deploy.mil.registry import Context, Ints, handles
from nailcore.errors import ConversionError

SamplingMode = Literal[
    "DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS"
]
BoxMode = Literal[
    "CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST"
]


def grid_points(mode: str, size_in: int, size_out: int) -> Tensor:
    """Where each output sample lies on the input axis 0..size_in - 1, as MIL's manual defines it.

    Returns:
        (size_out,) float64, limited to the axis.
    """
    i = torch.arange(size_out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if size_out == 1:
            points = torch.full((1,), (size_in - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0).double()
        else:
            points = i * (size_in - 1) / (size_out - 1)
    elif mode == "DEFAULT":
        points = i * size_in / size_out
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size_in - 1) / size_out
        points = 0.5 * delta + i * delta
    else:  # UNALIGN_CORNERS
        points = (i + 0.5) * size_in / size_out - 0.5
    return points.clamp(0, size_in - 1)


def _interpolate(x: Tensor, points: Tensor, axis: int) -> Tensor:
    """Linear interpolation of ``x`` at ``points`` along one axis."""
    low = points.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    weight = (points - low).float().reshape(shape)
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)


def resize_linear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(*D, H, W) to (*D, height, width), bilinear with MIL's sampling mode."""
    fast = {"UNALIGN_CORNERS": False, "STRICT_ALIGN_CORNERS": True}.get(mode)
    if x.dim() == 4 and fast is not None and x.is_floating_point():
        return functional.interpolate(x, (height, width), mode="bilinear", align_corners=fast)
    wide = x.float()
    wide = _interpolate(wide, grid_points(mode, x.shape[-2], height), x.dim() - 2)
    return _interpolate(wide, grid_points(mode, x.shape[-1], width), x.dim() - 1)


def _nearest(x: Tensor, height: int, width: int, offset: float) -> Tensor:
    """Take the cell that holds the sample; ``offset`` 0.5 samples at cell centres, 0 at their corners."""
    for axis, size in ((x.dim() - 2, height), (x.dim() - 1, width)):
        points = (torch.arange(size, dtype=torch.float64) + offset) * x.shape[axis] / size
        x = x.index_select(axis, points.floor().long().clamp(max=x.shape[axis] - 1))
    return x


def _scaled(x: Tensor, scale_height: float, scale_width: float) -> tuple[int, int]:
    # The file holds float32 scales: 1.6666666 * 3 must give 5, not 4.
    sizes = [
        math.floor(torch.tensor(size * scale, dtype=torch.float32).item() + 1e-6)
        for size, scale in ((x.shape[-2], scale_height), (x.shape[-1], scale_width))
    ]
    return sizes[0], sizes[1]


@handles("upsample_nearest_neighbor", exact=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """Output i takes input floor(i * size_in / size_out)."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    if x.dim() == 4:
        return functional.interpolate(x, (height, width), mode="nearest")
    return _nearest(x, height, width, 0.0)


@handles("resize_nearest_neighbor", exact=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Output i takes input floor((i + 0.5) * size_in / size_out)."""
    return _nearest(x, target_size_height, target_size_width, 0.5)


@handles("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Bilinear by scale factors; the step is recomputed from the floored output size."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    half_pixel = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half_pixel:
        raise ConversionError("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    return resize_linear(x, height, width, mode)


@handles("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: SamplingMode = "DEFAULT",
) -> Tensor:
    """Bilinear to a size."""
    return resize_linear(x, target_size_height, target_size_width, sampling_mode)


@handles("resize")
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: Literal["LINEAR", "NEAREST_NEIGHBOR"] = "LINEAR",
    sampling_mode: SamplingMode = "DEFAULT",
) -> Tensor:
    """Resize the last one or two dimensions to the end of ``shape``; 0 keeps a dimension."""
    if not 1 <= resized_dims <= 2 or resized_dims > len(shape):
        raise ConversionError(f"resized_dims {resized_dims} with shape {shape}: only 1 or 2 are known")
    wanted = list(x.shape[-2:]) if x.dim() > 1 else [1, x.shape[-1]]
    for i in range(1, resized_dims + 1):
        wanted[-i] = shape[-i] or x.shape[-i]
    if interpolation_mode == "NEAREST_NEIGHBOR":
        if sampling_mode != "DEFAULT":
            raise ConversionError(f"nearest neighbour with sampling_mode {sampling_mode} is not known")
        return _nearest(x, wanted[0], wanted[1], 0.5)
    result = resize_linear(x, wanted[0], wanted[1], sampling_mode)
    return result if x.is_floating_point() else result.trunc().to(x.dtype)


def _box_points(mode: str, start: Tensor, end: Tensor, size: int) -> Tensor:
    """Sample positions inside boxes along one axis, unlimited; start and end are (N,).

    Returns:
        (N, size) float32.
    """
    i = torch.arange(size, dtype=torch.float32)
    low, length = start[:, None], (end - start)[:, None]  # between centres: a box holds length + 1 pixels
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if size == 1:
            return low + length / 2 if mode == "ALIGN_CORNERS" else low
        return low + i * length / (size - 1)  # reversed corners mirror the crop, as TensorFlow's do
    if bool((length < 0).any()):
        raise ConversionError(f"a box whose end lies before its start, with sampling_mode {mode}")
    if mode == "DEFAULT":
        return low + i * (length + 1) / size
    if mode == "OFFSET_CORNERS":
        delta = length.clamp(min=1.0) / size
        return low + 0.5 * delta + i * delta
    return low + (i + 0.5) * (length + 1) / size - 0.5


def _split_boxes(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, 4) boxes as (N,) top, left, bottom, right."""
    a, b, c, d = boxes.float().unbind(1)
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CENTER"):
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


@handles("crop_resize")
def crop_resize(
    x: Tensor,
    *,
    context: Context,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: BoxMode = "CORNERS_HEIGHT_FIRST",
    sampling_mode: SamplingMode = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Cut boxes out of (B, C, H, W) and resize each; iOS 15 and 16 name them ``roi``, later ``boxes``."""
    height, width = x.shape[2:]
    if roi is not None:
        flat = roi.reshape(roi.shape[0], roi.shape[2])
        indexed = flat.shape[1] == 5
        corners = flat[:, 1:] if indexed else flat
        indices = flat[:, 0].long() if indexed else None
    elif boxes is not None:
        corners = boxes
        indices = torch.arange(len(boxes)) if box_indices is None else box_indices.long()
    else:
        raise ConversionError("neither roi nor boxes is given")
    top, left, bottom, right = _split_boxes(corners, box_coordinate_mode)
    scale_y = spatial_scale * (height - 1 if normalized_coordinates else 1)
    scale_x = spatial_scale * (width - 1 if normalized_coordinates else 1)
    ys = _box_points(sampling_mode, top * scale_y, bottom * scale_y, target_height)
    xs = _box_points(sampling_mode, left * scale_x, right * scale_x, target_width)
    if context.opset < 16 and (_leaves(ys, height) or _leaves(xs, width)):
        raise ConversionError("a box reaches out of the image, which is undefined before iOS 16")
    crops = []
    for n in range(len(corners)):
        images = x if indices is None else x[indices[n] : indices[n] + 1]
        crops.append(_sample_box(images, ys[n], xs[n], pad_value))
    stacked = torch.stack(crops)  # (N, B or 1, C, h, w)
    return stacked if roi is not None else stacked[:, 0].contiguous()


def _leaves(points: Tensor, size: int) -> bool:
    """Whether any sample lies outside the image."""
    return bool((points < -1e-4).any() or (points > size - 1 + 1e-4).any())


def _sample_box(images: Tensor, ys: Tensor, xs: Tensor, pad_value: float) -> Tensor:
    sampled = _interpolate(images, ys.double().clamp(0, images.shape[2] - 1), 2)
    sampled = _interpolate(sampled, xs.double().clamp(0, images.shape[3] - 1), 3)
    # A ten-thousandth of a pixel beyond the edge is rounding, not padding.
    outside_y = (ys < -1e-4) | (ys > images.shape[2] - 1 + 1e-4)
    outside_x = (xs < -1e-4) | (xs > images.shape[3] - 1 + 1e-4)
    return torch.where(outside_y[:, None] | outside_x[None, :], pad_value, sampled)


_PADDING = {"constant": "zeros", "border": "border"}


@handles("resample")
def resample(
    x: Tensor,
    *,
    coordinates: Tensor,
    sampling_mode: Literal["bilinear", "nearest"],
    padding_mode: Literal["constant", "border", "reflection", "symmetric"],
    padding_value: float,
    coordinates_mode: Literal["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"],
    align_corners: bool,
) -> Tensor:
    """(B, C, H, W) sampled at (B, h, w, 2) coordinates given as (x, y)."""
    grid = coordinates.float()
    sizes = torch.tensor([x.shape[3], x.shape[2]], dtype=torch.float32)
    if coordinates_mode == "unnormalized":
        # Pixel centres are whole numbers; written in the convention of align_corners below.
        align_corners = True if padding_mode != "symmetric" else align_corners
        grid = 2 * grid / (sizes - 1).clamp(min=1) - 1 if align_corners else (2 * grid + 1) / sizes - 1
    elif coordinates_mode == "normalized_zero_to_one":
        grid = 2 * grid - 1
    # torch reflects about pixel centres with align_corners and about pixel edges without.
    if (padding_mode == "reflection" and not align_corners) or (
        padding_mode == "symmetric" and align_corners
    ):
        raise ConversionError(f"padding_mode {padding_mode} with align_corners {align_corners} is not known")
    if padding_mode == "constant" and padding_value != 0:
        shifted = functional.grid_sample(x - padding_value, grid, sampling_mode, "zeros", align_corners)
        return shifted + padding_value
    return functional.grid_sample(
        x, grid, sampling_mode, _PADDING.get(padding_mode, "reflection"), align_corners
    )


@handles("affine")
def affine(
    x: Tensor,
    *,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: Literal["bilinear"],
    padding_mode: Literal["constant"],
    padding_value: float,
    coordinates_mode: Literal["normalized_minus_one_to_one"],
    align_corners: bool,
) -> Tensor:
    """(B, C, H, W) warped by one (1, 6) or B matrices from output to input coordinates."""
    if padding_value != 0:
        raise ConversionError(f"padding_value {padding_value}: only 0 is known")
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    size = [x.shape[0], x.shape[1], output_height, output_width]
    grid = functional.affine_grid(matrices, size, align_corners)
    return functional.grid_sample(x, grid, "bilinear", "zeros", align_corners)
