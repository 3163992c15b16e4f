"""Which finger each nail of an image is, judged together: no hand has two thumbs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nailcore.variant import FINGER_CLASSES

FINGERS = len(FINGER_CLASSES)
HAND = FINGERS // 2  # the first five classes are the left hand's
# What a second hand in the picture must bring, in nats. Between 3 and 6 the share of right fingers on
# rendered training images is nearly the same (95.2 to 95.4 % for 43 layers).
SECOND_HAND_NATS = 4.0
MIN_CHANCE = 1e-3  # a class is never ruled out by one nail alone
STEPS_PER_NAT = 1024  # scores are whole numbers, so that a tie is a tie in every language
_NEVER = np.iinfo(np.int64).min // 2


def name_fingers(chances: npt.NDArray[np.float64]) -> list[int]:
    """The fingers of an image's nails.

    Of all ways to give every nail a finger of its own, the likeliest: the largest sum of the logarithms
    of the nails' chances, ``SECOND_HAND_NATS`` less where both hands take part. A tie goes to the lower
    finger of the earlier nail, the left hand, one hand. More nails than fingers are more than two hands:
    then each nail is named by itself.

    The paper names every nail by itself (section 3). It calls the hand's side wrong for single nails
    where their neighbours know it; docs/training.md has what naming them together brings.

    Args:
        chances: (n, 10) mean class softmax of each nail, 0..1, in the order of ``FINGER_CLASSES``.

    Returns:
        n indices into ``FINGER_CLASSES``.

    Raises:
        ValueError: a shape other than (n, 10), or values that are not finite.
    """
    if chances.ndim != 2 or chances.shape[1] != FINGERS:
        raise ValueError(f"chances {chances.shape}: expected (n, {FINGERS})")
    if not np.isfinite(chances).all():
        raise ValueError("chances hold NaN or infinite values")
    count = len(chances)
    if count > FINGERS:
        return [int(c) for c in chances.argmax(axis=1)]
    scores = np.floor(np.log(chances + MIN_CHANCE) * STEPS_PER_NAT + 0.5).astype(np.int64)
    best, names = _assign(scores)
    best -= round(SECOND_HAND_NATS * STEPS_PER_NAT)
    if count <= HAND:
        right, right_names = _assign(scores[:, HAND:])
        left, left_names = _assign(scores[:, :HAND])
        if right >= best:
            best, names = right, [HAND + name for name in right_names]
        if left >= best:
            best, names = left, left_names
    return names


def _assign(scores: npt.NDArray[np.int64]) -> tuple[int, list[int]]:
    """The largest sum of n of the (n, m) scores, one of each row and none two of a column; m >= n.

    ``values[used]``: the best that the remaining nails can add when the columns ``used`` (bits) are
    taken. As many nails are named as bits are set.
    """
    count, columns = scores.shape
    values = np.zeros(1 << columns, np.int64)
    choices = np.zeros(1 << columns, np.int64)
    bits = 1 << np.arange(columns)
    for nail in reversed(range(count)):
        used = _sets_of(columns)[nail]
        taken = (used[:, None] & bits) > 0
        sums = np.where(taken, _NEVER, scores[nail] + values[used[:, None] | bits])
        choices[used] = sums.argmax(axis=1)
        values[used] = sums.max(axis=1)
    names: list[int] = []
    used_bits = 0
    for _ in range(count):
        names.append(int(choices[used_bits]))
        used_bits |= 1 << names[-1]
    return int(values[0]), names


@lru_cache(maxsize=2)
def _sets_of(columns: int) -> list[npt.NDArray[np.int64]]:
    """For k = 0..columns: the sets of k columns, as bits."""
    sizes = np.array([used.bit_count() for used in range(1 << columns)])
    return [np.flatnonzero(sizes == size).astype(np.int64) for size in range(columns + 1)]
