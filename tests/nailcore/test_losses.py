"""Losses against slow, obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.losses import (
    HUBER_DELTA,
    IGNORE,
    NAIL_WEIGHT,
    UNKNOWN,
    DirectionLoss,
    direction_loss,
    finger_loss,
    loss_max_pooling,
    mask_loss,
    plain_loss,
    shrink_mask,
    shrink_targets,
    total_loss,
    weighted_cross_entropy,
)


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


def draw_labels(seed: int, n: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random masks with ignored pixels, fingers of which some are unknown, and unit vectors, some unknown."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 2, (n, h, w), generator=generator).float()
    mask[torch.rand(n, h, w, generator=generator) < 0.1] = IGNORE
    nail = mask == 1
    finger = torch.randint(0, 3, (n, h, w), generator=generator)
    finger[~nail | (torch.rand(n, h, w, generator=generator) < 0.2)] = UNKNOWN
    angle = 6.3 * torch.rand(n, h, w, generator=generator)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    unknown = ~nail | (torch.rand(n, h, w, generator=generator) < 0.2)
    direction = torch.where(unknown[:, None], torch.zeros(()), direction)
    return mask, finger, direction


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), stride=st.sampled_from([1, 2, 4]))
def test_labels_of_a_level_follow_their_definition(seed: int, stride: int) -> None:
    mask, finger, direction = draw_labels(seed, 2, 8, 4)
    found = shrink_targets(mask, finger, direction, tuple(s for s in (1, 2, 4) if s <= stride))[stride]
    for i in range(2):
        for y in range(8 // stride):
            for x in range(4 // stride):
                cell = (i, slice(y * stride, (y + 1) * stride), slice(x * stride, (x + 1) * stride))
                pixels = [v for v in mask[cell].ravel().tolist() if v != IGNORE]
                label = IGNORE if not pixels else int(sum(pixels) >= len(pixels) / 2)
                assert int(found.mask[i, y, x]) == label
                fingers = set(finger[cell].ravel().tolist()) - {UNKNOWN}
                expected = fingers.pop() if label == 1 and len(fingers) == 1 else UNKNOWN
                assert int(found.finger[i, y, x]) == expected
                vector = direction[(i, slice(None), *cell[1:])].double().sum((1, 2))
                length = float(vector.norm())
                if length / stride**2 > 2e-3 and label == 1:
                    torch.testing.assert_close(
                        found.direction[i, :, y, x].double(), vector / length, rtol=0, atol=2e-3
                    )
                elif label != 1 or length == 0:
                    assert not found.direction[i, :, y, x].any()


def slow_finger(logits: torch.Tensor, finger: torch.Tensor) -> float:
    losses = []
    for i, y, x in (finger != UNKNOWN).nonzero().tolist():
        p = torch.softmax(logits[i, :, y, x].double(), 0)
        losses.append(-math.log(float(p[int(finger[i, y, x])])))
    return sum(losses) / len(losses) if losses else 0.0


def slow_direction(logits: torch.Tensor, direction: torch.Tensor, kind: str) -> float:
    losses = []
    for i, y, x in direction.abs().sum(1).nonzero().tolist():
        px, py = (float(v) for v in logits[i, :, y, x].double())
        tx, ty = (float(v) for v in direction[i, :, y, x].double())
        length = max(math.hypot(px, py), 1e-2)
        dx, dy = abs(px / length - tx), abs(py / length - ty)
        if kind == "l2":
            losses.append(dx * dx + dy * dy)
        elif kind == "l1":
            losses.append(dx + dy)
        else:
            d = HUBER_DELTA
            losses.append(sum(v * v / 2 if v <= d else d * (v - d / 2) for v in (dx, dy)))
    return sum(losses) / len(losses) if losses else 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["l2", "l1", "huber"]))
def test_finger_and_direction_losses_are_plain_means_inside_annotated_nails(
    seed: int, kind: DirectionLoss
) -> None:
    _, finger, direction = draw_labels(seed, 2, 4, 5)
    generator = torch.Generator().manual_seed(seed + 1)
    logits = 2 * torch.randn(2, 12, 4, 5, generator=generator)
    assert float(finger_loss(logits[:, :10], finger)) == pytest.approx(
        slow_finger(logits[:, :10], finger), rel=1e-4
    )
    assert float(direction_loss(logits[:, 10:], direction, kind)) == pytest.approx(
        slow_direction(logits[:, 10:], direction, kind), rel=1e-4, abs=1e-6
    )


def test_direction_loss_is_two_minus_two_cosines() -> None:
    for degrees in (0, 30, 90, 180):
        a = math.radians(degrees)
        logits = 7 * torch.tensor([math.cos(a), math.sin(a)]).view(1, 2, 1, 1)
        truth = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        assert float(direction_loss(logits, truth)) == pytest.approx(2 - 2 * math.cos(a), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_baseline_weighs_nails_twenty_times(seed: int) -> None:
    mask, _, _ = draw_labels(seed, 2, 3, 4)
    labels = mask.long()
    logits = 2 * torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    total = weights = 0.0
    for i, y, x in (labels != IGNORE).nonzero().tolist():
        label = int(labels[i, y, x])
        weight = NAIL_WEIGHT if label else 1.0
        total -= weight * math.log(float(torch.softmax(logits[i, :, y, x].double(), 0)[label]))
        weights += weight
    assert float(weighted_cross_entropy(logits, labels)) == pytest.approx(total / weights, rel=1e-4)


def test_plain_loss_is_cross_entropy_and_dice() -> None:
    labels = torch.tensor([[[0, 1, 1, IGNORE]]])
    logits = torch.tensor([[[[2.0, 0.0, -1.0, 9.0]], [[0.0, 0.0, 1.0, -9.0]]]])
    p = torch.softmax(logits, 1)[0, 1, 0].double()
    entropy = -(math.log(1 - p[0]) + math.log(p[1]) + math.log(p[2])) / 3
    dice = (2 * float(p[1] + p[2]) + 1) / (float(p[:3].sum()) + 2 + 1)
    assert float(plain_loss(logits, labels)) == pytest.approx(entropy + 1 - dice, rel=1e-5)


@pytest.mark.parametrize("mask_kind", ["lmp", "weighted", "plain"])
def test_no_gradient_where_nothing_is_labelled(mask_kind: str) -> None:
    """Image 0 carries a mask alone, image 1 everything, image 2 nothing."""
    mask = torch.zeros(3, 16, 16)
    mask[:2, 4:12, 4:12] = 1
    mask[2] = IGNORE
    finger = torch.full((3, 16, 16), UNKNOWN, dtype=torch.int8)
    finger[1, 4:12, 4:12] = 3
    direction = torch.zeros(3, 2, 16, 16)
    direction[1, 0, 4:12, 4:12] = 1
    weights = {4: 1.0, 8: 0.5}
    targets = shrink_targets(mask, finger, direction, (4, 8))
    generator = torch.Generator().manual_seed(0)
    levels = {
        stride: {
            name: torch.randn(3, c, 16 // stride, 16 // stride, generator=generator).requires_grad_()
            for name, c in (("fgbg", 2), ("finger", 10), ("direction", 2))
        }
        for stride in weights
    }
    parts = total_loss(levels, targets, weights, mask_kind=mask_kind)  # type: ignore[arg-type]
    torch.testing.assert_close(parts.total, parts.fgbg + parts.finger + parts.direction)
    lighter = total_loss(
        levels,
        targets,
        weights,
        mask_kind=mask_kind,  # type: ignore[arg-type]
        finger_weight=0.25,
        direction_weight=0.5,
    )
    torch.testing.assert_close(lighter.total, parts.fgbg + 0.25 * parts.finger + 0.5 * parts.direction)
    assert float(lighter.finger.detach()) == float(parts.finger.detach()) > 0
    assert float(parts.direction.detach()) > 0
    parts.total.backward()  # type: ignore[no-untyped-call]
    for stride, logits in levels.items():
        for name, tensor in logits.items():
            assert tensor.grad is not None
            touched = tensor.grad.abs().sum(1) > 0
            if name == "fgbg":
                assert bool(touched[:2].any()) and not bool(touched[2].any())
            else:
                inside = targets[stride].mask[1] == 1
                assert not bool(touched[0].any()) and not bool(touched[2].any())
                assert bool((touched[1] == inside).all()), (stride, name)


def test_batches_without_any_label_give_a_loss_of_zero_that_has_gradients() -> None:
    targets = shrink_targets(
        torch.full((1, 8, 8), float(IGNORE)), torch.full((1, 8, 8), UNKNOWN), torch.zeros(1, 2, 8, 8), (4,)
    )
    logits = {
        n: torch.randn(1, c, 2, 2).requires_grad_()
        for n, c in (("fgbg", 2), ("finger", 10), ("direction", 2))
    }
    total = total_loss({4: logits}, targets, {4: 1.0}).total
    total.backward()  # type: ignore[no-untyped-call]
    assert float(total.detach()) == 0
    assert all(t.grad is not None and not t.grad.any() for t in logits.values())
