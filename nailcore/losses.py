"""Losses of the paper, section 3.4; each speaks only where its labels exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects

IGNORE = 255  # in masks: nobody annotated this pixel
UNKNOWN = -1  # in finger maps: no nail, or nobody said which finger

MaskLoss = Literal["lmp", "weighted", "plain"]
DirectionLoss = Literal["l2", "l1", "huber"]
Levels = dict[int, dict[str, torch.Tensor]]  # stride -> name -> logits (N, C, H/stride, W/stride)
NAIL_WEIGHT = 20.0  # of the baseline that Loss Max-Pooling beat
HUBER_DELTA = 0.5


@dataclass(frozen=True)
class Targets:
    """Labels of a batch at one resolution."""

    mask: torch.Tensor  # (N, h, w) int64 in {0, 1, IGNORE}
    finger: torch.Tensor  # (N, h, w) int64 in 0..9 or UNKNOWN
    direction: torch.Tensor  # (N, 2, h, w) float32 unit vectors; zeros where unknown


# -- labels of the pyramid's levels ----------------------------------------------------------------
def shrink_mask(mask: torch.Tensor, stride: int) -> torch.Tensor:
    """(N, H, W) float nail coverage (or IGNORE) -> (N, H/stride, W/stride) int64 labels.

    A cell is nail when at least half of its annotated area is; IGNORE when none is annotated.
    """
    valid = (mask != IGNORE).float()
    area = F.avg_pool2d(valid[:, None], stride)[:, 0]
    nail = F.avg_pool2d((mask * valid)[:, None], stride)[:, 0]
    return _cut(area, nail)


def _cut(area: torch.Tensor, nail: torch.Tensor) -> torch.Tensor:
    labels = (nail >= 0.5 * area).long()
    return torch.where(area > 0, labels, torch.full_like(labels, IGNORE))


def shrink_targets(
    mask: torch.Tensor, finger: torch.Tensor, direction: torch.Tensor, strides: tuple[int, ...]
) -> dict[int, Targets]:
    """Labels at every stride, each a multiple of the one before.

    A cell is nail as ``shrink_mask`` says. A nail cell has a finger when all its pixels with a known
    finger agree, otherwise it is UNKNOWN: two nails share it. Its direction is the renormalised mean
    over its pixels with a known direction, and unknown where these cancel (mean shorter than 1/1000).

    mask (N, H, W) float in {0, 1, IGNORE}; finger (N, H, W) any integer type, UNKNOWN: none;
    direction (N, 2, H, W) float32, zeros: none.
    """
    valid = (mask != IGNORE).float()
    # Means of means and maxima of maxima: each level is made from the one before.
    area, nail = valid[:, None], (mask * valid)[:, None]
    high = finger.float()[:, None]
    low = torch.where(high < 0, torch.full_like(high, -1e3), -high)  # its maximum: minus the least finger
    found, done = {}, 1
    for stride in strides:
        step = stride // done
        if stride % done:
            raise ValueError(f"strides {strides}: each must be a multiple of the one before")
        if step > 1:
            area, nail, direction = (F.avg_pool2d(t, step) for t in (area, nail, direction))
            high, low = (F.max_pool2d(t, step) for t in (high, low))
        done = stride
        labels = _cut(area[:, 0], nail[:, 0])
        inside = labels == 1
        agreed = inside & (high[:, 0] >= 0) & (high[:, 0] == -low[:, 0])
        length = direction.norm(dim=1, keepdim=True)
        known = (length > 1e-3) & inside[:, None]
        found[stride] = Targets(
            mask=labels,
            finger=torch.where(agreed, high[:, 0], torch.full_like(high[:, 0], UNKNOWN)).long(),
            direction=torch.where(known, direction / length.clamp_min(1e-12), torch.zeros_like(direction)),
        )
    return found


# -- foreground and background ---------------------------------------------------------------------
def loss_max_pooling(logits: torch.Tensor, labels: torch.Tensor, fraction: float = 0.1) -> torch.Tensor:
    """Mean of the largest ``fraction`` of the pixels' cross-entropies over the whole minibatch.

    Loss Max-Pooling (Rota Bulò et al. 2017) with p = 1, as the paper fixes it: k = ⌊fraction · M⌋
    of the M annotated pixels (at least one). logits (N, 2, h, w); labels (N, h, w) int64 in
    {0, 1, IGNORE}. Returns a scalar; zero where nothing is annotated.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    annotated = losses[labels != IGNORE]
    if annotated.numel() == 0:
        return logits.sum() * 0.0
    k = max(1, int(fraction * annotated.numel()))
    return annotated.topk(k, sorted=False).values.mean()


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The paper's baseline: cross-entropy with the nail class 20 × the background, weighted mean.

    Shapes and IGNORE as in ``loss_max_pooling``.
    """
    if not bool((labels != IGNORE).any()):
        return logits.sum() * 0.0
    weight = logits.new_tensor([1.0, NAIL_WEIGHT])
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORE)


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy + (1 − Dice of the nail class over the minibatch), for warming up.

    Shapes and IGNORE as in ``loss_max_pooling``.
    """
    annotated = labels != IGNORE
    if not bool(annotated.any()):
        return logits.sum() * 0.0
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    nail = logits.softmax(1)[:, 1] * annotated
    truth = (labels == 1).to(nail.dtype)
    dice = (2 * (nail * truth).sum() + 1) / (nail.sum() + truth.sum() + 1)
    return entropy + 1 - dice


MASK_LOSSES = {"lmp": loss_max_pooling, "weighted": weighted_cross_entropy, "plain": plain_loss}


def mask_loss(levels: Levels, mask: torch.Tensor, level_weights: dict[int, float]) -> torch.Tensor:
    """LMP on ``fgbg`` at every pyramid level; ``mask`` (N, H, W) float in {0, 1, IGNORE}."""
    total = mask.new_zeros(())
    for stride, weight in level_weights.items():
        labels = shrink_mask(mask, stride)
        total = total + weight * loss_max_pooling(levels[stride]["fgbg"].float(), labels)
    return total


# -- which finger, and which way -------------------------------------------------------------------
def finger_loss(logits: torch.Tensor, finger: torch.Tensor) -> torch.Tensor:
    """Plain mean of the cross-entropies over the pixels whose finger is known; zero where none is.

    logits (N, 10, h, w); finger (N, h, w) int64 in 0..9 or UNKNOWN.
    """
    known = finger != UNKNOWN
    if not bool(known.any()):
        return logits.sum() * 0.0
    # Nails are a few per cent of the pixels: gather them before the softmax.
    picked = logits.permute(0, 2, 3, 1)[known]
    return F.cross_entropy(picked, finger[known])


def direction_loss(logits: torch.Tensor, direction: torch.Tensor, kind: DirectionLoss = "l2") -> torch.Tensor:
    """Distance between the predicted unit vector and the true one, plain mean where one is known.

    ``l2``: squared Euclidean distance, 2 − 2 cos of the angle, as the paper has it; ``l1``: sum of
    the absolute differences; ``huber``: sum over x and y of Huber's function with δ = 0.5.
    logits and direction (N, 2, h, w); a zero vector means unknown. Zero where none is known.
    """
    known = (direction != 0).any(1)
    if not bool(known.any()):
        return logits.sum() * 0.0
    truth = direction.permute(0, 2, 3, 1)[known]  # (M, 2)
    # eps bounds the gradient (1 / length) of a prediction that is nearly no vector at all.
    predicted = F.normalize(logits.permute(0, 2, 3, 1)[known], dim=1, eps=1e-2)
    if kind == "l2":
        return (predicted - truth).square().sum(1).mean()
    if kind == "l1":
        return (predicted - truth).abs().sum(1).mean()
    return F.huber_loss(predicted, truth, delta=HUBER_DELTA, reduction="none").sum(1).mean()


@dataclass(frozen=True)
class LossParts:
    """The total to minimise, and its parts summed over the levels with their weights."""

    total: torch.Tensor
    fgbg: torch.Tensor
    finger: torch.Tensor
    direction: torch.Tensor


def total_loss(
    levels: Levels,
    targets: dict[int, Targets],
    level_weights: dict[int, float],
    *,
    mask_kind: MaskLoss = "lmp",
    direction_kind: DirectionLoss = "l2",
    finger_weight: float = 1.0,
    direction_weight: float = 1.0,
) -> LossParts:
    """Sum of the three losses at every pyramid level; ``level_weights`` by stride.

    The paper's weights are 1. The total alone is weighted by ``finger_weight`` and ``direction_weight``,
    the parts are told as they are.
    """
    first = next(iter(targets.values())).direction
    parts = [first.new_zeros(()) for _ in range(3)]
    for stride, weight in level_weights.items():
        logits, truth = levels[stride], targets[stride]
        parts[0] = parts[0] + weight * MASK_LOSSES[mask_kind](logits["fgbg"].float(), truth.mask)
        parts[1] = parts[1] + weight * finger_loss(logits["finger"].float(), truth.finger)
        parts[2] = parts[2] + weight * direction_loss(
            logits["direction"].float(), truth.direction, direction_kind
        )
    return LossParts(parts[0] + finger_weight * parts[1] + direction_weight * parts[2], *parts)
