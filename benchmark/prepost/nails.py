"""Two lists of nails compared, and why they differ: known mistakes made on purpose on the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nailcore.runtime import Logits
from nailcore.tryon import Nail, angular_error_deg, find_nails, label_components, nail_mask, nail_score
from nailcore.tryon.components import describe_nails, find_extents, softmax
from nailcore.tryon.direction import mean_direction

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

MATCH_DISTANCE = 2.0  # logits cells between centroids of what may be the same nail
NO_ANGLE_DEG = 180.0  # one side has a direction and the other has none


@dataclass(frozen=True)
class NailDifference:
    """How found nails differ from the reference's; worst pair each. Lengths in logits cells."""

    reference: int
    found: int
    unmatched: int  # nails of either side without a partner
    area: int
    place: float  # furthest of centroid, base and tip
    box: int
    fingers: int  # pairs of unequal finger class
    angle_deg: float
    score: float  # of foreground and finger scores and coherence

    @property
    def is_none(self) -> bool:
        """The same nails but for rounding; scores are not looked at, each mistake has its own."""
        return not (self.unmatched or self.area or self.box or self.fingers) and (
            self.place < 1e-3 and self.angle_deg < 1e-2
        )


def compare_nails(reference: list[Nail], found: list[Nail]) -> NailDifference:
    """Pair the nails by centroid and take the worst of each figure."""
    pairs = _pair(reference, found)
    return NailDifference(
        reference=len(reference),
        found=len(found),
        unmatched=len(reference) + len(found) - 2 * len(pairs),
        area=max((abs(a.area - b.area) for a, b in pairs), default=0),
        place=max((_compare_places(a, b) for a, b in pairs), default=0.0),
        box=max((_compare_boxes(a, b) for a, b in pairs), default=0),
        fingers=sum(a.finger != b.finger for a, b in pairs),
        angle_deg=max((_compare_angles(a, b) for a, b in pairs), default=0.0),
        score=max((_compare_scores(a, b) for a, b in pairs), default=0.0),
    )


def _pair(reference: list[Nail], found: list[Nail]) -> list[tuple[Nail, Nail]]:
    free = list(found)
    pairs = []
    for nail in reference:
        near = [(_distance(nail.centroid, other.centroid), abs(nail.area - other.area)) for other in free]
        if near and min(near)[0] <= MATCH_DISTANCE:
            pairs.append((nail, free.pop(near.index(min(near)))))
    return pairs


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))


def _compare_places(a: Nail, b: Nail) -> float:
    worst = _distance(a.centroid, b.centroid)
    for one, other in ((a.base, b.base), (a.tip, b.tip)):
        if one and other:
            worst = max(worst, _distance(one, other))
    return worst


def _compare_boxes(a: Nail, b: Nail) -> int:
    sides = zip((a.left, a.top, a.width, a.height), (b.left, b.top, b.width, b.height), strict=True)
    return max(abs(one - other) for one, other in sides)


def _compare_angles(a: Nail, b: Nail) -> float:
    if a.angle_deg is None or b.angle_deg is None:
        return 0.0 if a.angle_deg is b.angle_deg else NO_ANGLE_DEG
    return float(angular_error_deg(a.angle_deg, b.angle_deg))


def _compare_scores(a: Nail, b: Nail) -> float:
    coherence = abs(
        (a.direction.coherence if a.direction else 0) - (b.direction.coherence if b.direction else 0)
    )
    return max(abs(a.score - b.score), abs(a.finger_score - b.finger_score), coherence)


def find_cause(logits: Logits, found: list[Nail], min_area_px: int) -> str:
    """The name of the known mistake that reproduces the found nails exactly, "" when none does."""
    for name, mistake in _MISTAKES.items():
        with np.errstate(over="ignore"):
            if compare_nails(mistake(logits, min_area_px), found).is_none:
                return name
    return ""


def _run(logits: Logits, min_area_px: int, **changed: F32) -> list[Nail]:
    given = {name: logits[name][0] for name in ("fgbg", "finger", "direction")} | changed
    return find_nails(given["fgbg"], given["finger"], given["direction"], min_area_px=min_area_px)


def _swap_xy(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, direction=logits["direction"][0][::-1])


def _flip_y(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, direction=logits["direction"][0] * np.array([1, -1], np.float32)[:, None, None])


def _reverse(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, direction=-logits["direction"][0])


def _reverse_fingers(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, finger=logits["finger"][0][::-1])


def _swap_hands(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, finger=np.roll(logits["finger"][0], 5, axis=0))


def _reverse_within_hands(logits: Logits, area: int) -> list[Nail]:
    finger = logits["finger"][0]
    return _run(logits, area, finger=np.concatenate([finger[4::-1], finger[:4:-1]]))


def _swap_fgbg(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, area, fgbg=logits["fgbg"][0][::-1])


def _threshold(logits: Logits, area: int) -> list[Nail]:
    """The nail's logit above zero (its sigmoid above one half), whatever the background's is."""
    fgbg, finger, direction = (logits[name][0] for name in ("fgbg", "finger", "direction"))
    labels = label_components(fgbg[1] > 0)
    return describe_nails(labels, nail_score(fgbg), finger, direction, min_area_px=area)


def _sigmoid(logits: Logits, area: int) -> list[Nail]:
    """As above, and the angles weighted by that sigmoid too."""
    fgbg = logits["fgbg"][0].copy()
    fgbg[0] = 0
    return _run(logits, area, fgbg=fgbg)


def _drop_small_ones_never(logits: Logits, area: int) -> list[Nail]:
    return _run(logits, 1)


def _read_as_nhwc(logits: Logits, area: int) -> list[Nail]:
    changed = {}
    for name in ("fgbg", "finger", "direction"):
        values = logits[name][0]
        changed[name] = values.ravel().reshape(*values.shape[1:], len(values)).transpose(2, 0, 1)
    return _run(logits, area, **changed)


def _transpose(logits: Logits, area: int) -> list[Nail]:
    return _run(
        logits, area, **{name: logits[name][0].swapaxes(1, 2) for name in ("fgbg", "finger", "direction")}
    )


def _softmax_over_pixels(logits: Logits, area: int) -> list[Nail]:
    """The class probabilities of a pixel sum to one; here those of a class over the image do."""
    finger = logits["finger"][0]
    wrong = softmax(finger.reshape(len(finger), -1).T).T.reshape(finger.shape)
    return [
        replace(nail, finger=int(sums.argmax()), finger_score=float(sums.max()) / nail.area)
        for nail, sums in _sum_inside(logits, area, wrong)
    ]


def _vote_by_logits(logits: Logits, area: int) -> list[Nail]:
    """Class logits summed without a softmax."""
    finger = logits["finger"][0].astype(np.float64)
    return [
        replace(nail, finger=int(sums.argmax()), finger_score=float(sums.max()) / nail.area)
        for nail, sums in _sum_inside(logits, area, finger)
    ]


def _sum_inside(logits: Logits, area: int, values: F64) -> Iterator[tuple[Nail, F64]]:
    for nail, rows, columns in _cells_of(logits, area):
        yield nail, values[:, rows, columns].sum(axis=1)


def _cells_of(logits: Logits, area: int) -> Iterator[tuple[Nail, Indices, Indices]]:
    labels = label_components(nail_mask(logits["fgbg"][0]))
    nails = iter(_run(logits, area))
    for label in range(1, int(labels.max()) + 1):
        rows, columns = np.nonzero(labels == label)
        if len(rows) >= area:
            yield next(nails), rows, columns


def _unweighted(logits: Logits, area: int) -> list[Nail]:
    return _redirect(logits, area, weighted=False, unit=True)


def _lengths_kept(logits: Logits, area: int) -> list[Nail]:
    return _redirect(logits, area, weighted=True, unit=False)


def _redirect(logits: Logits, area: int, *, weighted: bool, unit: bool) -> list[Nail]:
    score = nail_score(logits["fgbg"][0])
    found = []
    for nail, rows, columns in _cells_of(logits, area):
        x, y = logits["direction"][0][:, rows, columns].astype(np.float64)
        weights = score[rows, columns] if weighted else np.ones(len(rows))
        if not unit:
            weights = weights * np.hypot(x, y)  # what the lengths do to the angle
        mean = mean_direction(x, y, weights)
        base, tip = find_extents(rows, columns, nail.centroid, mean) if mean else (None, None)
        found.append(replace(nail, direction=mean, base=base, tip=tip))
    return found


_MISTAKES: dict[str, Callable[[Logits, int], list[Nail]]] = {
    "direction's x and y swapped": _swap_xy,
    "direction's y points up": _flip_y,
    "direction reversed (tip to base)": _reverse,
    "finger order reversed": _reverse_fingers,
    "left and right hand swapped": _swap_hands,
    "finger order reversed within each hand": _reverse_within_hands,
    "nail and background swapped": _swap_fgbg,
    "mask by a threshold on the nail's logit instead of the argmax": _threshold,
    "mask and score by the nail's sigmoid instead of the softmax": _sigmoid,
    "finger softmax over the wrong axis (pixels instead of classes)": _softmax_over_pixels,
    "finger logits summed without softmax": _vote_by_logits,
    "directions averaged without the foreground weight": _unweighted,
    "directions averaged with their lengths": _lengths_kept,
    "rows and columns swapped": _transpose,
    "layout mixed up (channels first read as channels last)": _read_as_nhwc,
    "small components kept": _drop_small_ones_never,
}
