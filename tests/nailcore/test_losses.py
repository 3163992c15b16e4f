"""Losses against slow, obvious references."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.losses import IGNORE, loss_max_pooling, mask_loss, shrink_mask


def slow_lmp(logits: torch.Tensor, labels: torch.Tensor, fraction: float) -> float:
    losses = []
    n, _, h, w = logits.shape
    for i in range(n):
        for y in range(h):
            for x in range(w):
                label = int(labels[i, y, x])
                if label != IGNORE:
                    p = torch.softmax(logits[i, :, y, x].double(), 0)
                    losses.append(-float(torch.log(p[label])))
    if not losses:
        return 0.0
    k = max(1, int(fraction * len(losses)))
    return float(np.mean(sorted(losses, reverse=True)[:k]))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    fraction=st.sampled_from([0.1, 0.25, 1.0]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_lmp_is_the_mean_of_the_top_losses_over_the_minibatch(
    seed: int, shape: tuple[int, int, int], fraction: float, ignored: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, h, w = shape
    logits = 3 * torch.randn(n, 2, h, w, generator=generator)
    labels = torch.randint(0, 2, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < ignored] = IGNORE
    found = float(loss_max_pooling(logits, labels, fraction))
    np.testing.assert_allclose(found, slow_lmp(logits, labels, fraction), rtol=1e-4, atol=1e-6)


def test_lmp_sends_no_gradient_to_easy_or_ignored_pixels() -> None:
    logits = torch.tensor([5.0, 4.0, 3.0, -1.0, 0.0] * 2).view(1, 1, 2, 5)
    logits = torch.cat([logits, -logits], 1).requires_grad_()
    labels = torch.zeros(1, 2, 5, dtype=torch.long)
    labels[0, 1] = IGNORE
    loss_max_pooling(logits, labels, 0.2).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    touched = logits.grad.abs().sum(1)[0] > 0
    assert touched.nonzero().tolist() == [[0, 3]]


def test_shrunk_labels_take_the_majority_and_keep_ignore() -> None:
    mask = torch.zeros(1, 4, 8)
    mask[0, :, :2] = 1  # half of the first cell
    mask[0, :3, 4:] = IGNORE
    mask[0, 3, 4:] = 1
    assert shrink_mask(mask, 4).tolist() == [[[1, 1]]]
    assert shrink_mask(torch.full((1, 4, 4), float(IGNORE)), 4).tolist() == [[[IGNORE]]]


def test_mask_loss_falls_when_every_level_is_right() -> None:
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    weights = {4: 1.0, 8: 0.4}

    def levels(sign: float) -> dict[int, dict[str, torch.Tensor]]:
        made = {}
        for stride in weights:
            nail = shrink_mask(mask, stride).float()[:, None] * 2 - 1
            made[stride] = {"fgbg": sign * torch.cat([-nail, nail], 1) * 5}
        return made

    assert float(mask_loss(levels(1), mask, weights)) < 1e-3 < float(mask_loss(levels(-1), mask, weights))
