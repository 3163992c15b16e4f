"""The same crops as ``augment`` makes with OpenCV, made with kornia on any torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nailcore.data.augment import Crop, CropPlan, LabelledPhoto, colour_matrix, label_crop, repaint_nails
from nailcore.errors import MissingToolError
from nailcore.preprocess import PAD_VALUE

if TYPE_CHECKING:
    import torch


def apply_plan_kornia(photo: LabelledPhoto, plan: CropPlan, crop_px: int, device: str = "cpu") -> Crop:
    """Make the crop a plan describes.

    Interpolation and blur differ from OpenCV's in rounding, noise is drawn by torch's generator; the
    labels are those of ``augment.apply_plan`` but for single pixels at borders. A sixth as fast as
    OpenCV on a CPU (21 against 122 crops of 320 px per second and thread): for machines with a GPU.

    Raises:
        MissingToolError: kornia is not installed.
    """
    import torch

    try:
        from kornia.filters import gaussian_blur2d
    except ImportError as error:
        raise MissingToolError(
            "Augmentation by kornia needs kornia, which is not installed.",
            hint='Install the extra: pip install -e ".[train]" in the source folder.',
        ) from error
    image = torch.from_numpy(photo.image).to(device).permute(2, 0, 1)[None].float()
    if plan.shrink < 0.7:  # bilinear sampling would alias: blur to the new pixel size first
        image = gaussian_blur2d(image, *_kernel(0.35 / plan.shrink))
    index = torch.from_numpy(photo.nail_index).to(device)[None, None].float()
    crop = _warp(image - PAD_VALUE, plan, crop_px, reflect=plan.reflect) + PAD_VALUE
    soft = _warp((index > 0).float(), plan, crop_px, reflect=plan.reflect)
    near = _warp(index, plan, crop_px, nearest=True)
    shape = (soft[0, 0] > 0.5).byte().cpu().numpy()
    if plan.repaint_seed is not None:
        pixels = crop[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy()
        painted = repaint_nails(pixels, shape, np.random.default_rng(plan.repaint_seed))
        crop = torch.from_numpy(painted).to(device).permute(2, 0, 1)[None].float()
    crop = _colour(crop.clamp(0, 255), plan)
    if plan.blur_px:
        crop = gaussian_blur2d(crop, *_kernel(plan.blur_px))
    if plan.noise:
        generator = torch.Generator(device).manual_seed(plan.seed)
        grain = torch.randn(crop.shape, generator=generator, device=device)
        crop = (crop + plan.noise * grain).clamp(0, 255)
    if plan.jpeg_quality:
        from kornia.enhance import jpeg_codec_differentiable

        quality = torch.tensor([float(plan.jpeg_quality)], device=device)
        crop = 255 * jpeg_codec_differentiable(crop / 255, quality)
    pixels = crop[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy()
    return Crop(pixels, *label_crop(photo, plan, shape, near[0, 0].round().byte().cpu().numpy()))


def _kernel(sigma: float) -> tuple[tuple[int, int], tuple[float, float]]:
    """Kernel size and sigma; as far as OpenCV reaches for uint8 images: three sigma."""
    side = 2 * max(1, round(3 * sigma)) + 1
    return (side, side), (sigma, sigma)


def _warp(
    image: torch.Tensor, plan: CropPlan, crop_px: int, *, reflect: bool = False, nearest: bool = False
) -> torch.Tensor:
    import torch
    from kornia.geometry.transform import warp_perspective

    matrix = torch.from_numpy(plan.matrix).to(image)[None]
    warped: torch.Tensor = warp_perspective(
        image,
        matrix,
        (crop_px, crop_px),
        mode="nearest" if nearest else "bilinear",
        padding_mode="reflection" if reflect else "zeros",
        align_corners=True,  # pixel centres have whole coordinates, as in OpenCV
    )
    return warped


def _colour(crop: torch.Tensor, plan: CropPlan) -> torch.Tensor:
    import torch

    mean = crop.mean((0, 2, 3)).double().cpu().numpy()
    matrix = torch.from_numpy(colour_matrix(plan, mean)).to(crop)
    moved = torch.einsum("ij,njhw->nihw", matrix[:, :3], crop) + matrix[:, 3].view(1, 3, 1, 1)
    return moved.clamp(0, 255)
