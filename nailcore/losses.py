"""Losses of the paper, section 3.4; each speaks only where its labels exist."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects

IGNORE = 255  # label of pixels nobody annotated


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


def shrink_mask(mask: torch.Tensor, stride: int) -> torch.Tensor:
    """(N, H, W) float nail coverage (or IGNORE) -> (N, H/stride, W/stride) int64 labels.

    A cell is nail when at least half of its annotated area is; IGNORE when none is annotated.
    """
    valid = (mask != IGNORE).float()
    area = F.avg_pool2d(valid[:, None], stride)[:, 0]
    nail = F.avg_pool2d((mask * valid)[:, None], stride)[:, 0]
    labels = (nail >= 0.5 * area).long()
    return torch.where(area > 0, labels, torch.full_like(labels, IGNORE))


def mask_loss(
    levels: dict[int, dict[str, torch.Tensor]], mask: torch.Tensor, level_weights: dict[int, float]
) -> torch.Tensor:
    """LMP on ``fgbg`` at every pyramid level; ``mask`` (N, H, W) float in {0, 1, IGNORE}."""
    total = mask.new_zeros(())
    for stride, weight in level_weights.items():
        labels = shrink_mask(mask, stride)
        total = total + weight * loss_max_pooling(levels[stride]["fgbg"].float(), labels)
    return total
