"""MIL's classify, which ends a classifier, and non_maximum_suppression, which ends a detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.mil.registry import Context, handles
from nailcore.errors import ConversionError


@handles("classify", exact=True)
def classify(probabilities: Tensor, classes: list) -> tuple[Any, dict[Any, float]]:  # type: ignore[type-arg]
    """The most probable class, and every class with its probability."""
    flat = probabilities.reshape(-1).tolist()
    if len(flat) != len(classes):
        raise ConversionError(f"{len(flat)} probabilities for {len(classes)} classes")
    return classes[int(np.argmax(flat))], dict(zip(classes, flat, strict=True))


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one (x, y, width, height) box with (N, 4) ones."""
    low = torch.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = torch.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(1)
    union = box[2:].prod() + others[:, 2:].prod(1) - shared
    return torch.where(union > 0, shared / union, 0.0)


def _suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, *, per_class: bool) -> list[int]:
    """Indices of the boxes that stay, best first."""
    best, label = scores.max(1)
    kept: list[int] = []
    for index in torch.argsort(best, descending=True, stable=True).tolist():
        rivals = [k for k in kept if not per_class or label[k] == label[index]]
        if not rivals or not bool((_overlaps(boxes[index], boxes[rivals]) > iou_threshold).any()):
            kept.append(index)
    return kept


@handles("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    *,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    context: Context,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """Boxes without those that overlap a better one; free places: zeros, and -1 as index.

    Up to iOS 16 boxes are (n, B, 4) and a count is returned; since iOS 17 they are (n, 4, B).
    """
    old = context.opset < 17
    if not old:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    n, classes = boxes.shape[0], scores.shape[2]
    out_boxes, out_scores = torch.zeros(n, max_boxes, 4), torch.zeros(n, max_boxes, classes)
    out_indices = torch.full((n, max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(n, dtype=torch.int32)
    for i in range(n):
        possible = torch.arange(boxes.shape[1])
        if score_threshold is not None:
            possible = possible[scores[i].max(1).values >= score_threshold]
        kept = _suppress(
            boxes[i, possible], scores[i, possible], iou_threshold, per_class=per_class_suppression
        )
        chosen = possible[kept[:max_boxes]]
        count = len(chosen)
        out_boxes[i, :count], out_scores[i, :count] = boxes[i, chosen], scores[i, chosen]
        out_indices[i, :count] = chosen.to(torch.int32)
        counts[i] = count
    if old:
        return out_boxes, out_scores, out_indices, counts
    return out_boxes.transpose(1, 2), out_scores.transpose(1, 2), out_indices
