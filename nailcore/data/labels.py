"""What is known of an image: its nails, their fingers and directions, and the dense maps made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from nailcore.variant import FINGER_CLASSES, FINGERS

Label = Literal["mask", "finger", "direction"]
LABELS: tuple[Label, ...] = ("mask", "finger", "direction")

UNKNOWN_FINGER = -1  # in finger maps: no nail here, or nobody said which finger it is
MAX_NAILS = 254  # nail indices are uint8; 0 is background, 255 is left free for "not annotated"
# FINGER_CLASSES runs left thumb .. left pinky, right thumb .. right pinky: a mirror swaps the halves.
MIRRORED_FINGER = tuple((i + len(FINGERS)) % len(FINGER_CLASSES) for i in range(len(FINGER_CLASSES)))

Point = tuple[float, float]
IndexMap = npt.NDArray[np.uint8]


class MachineMade(BaseModel):
    """Which labels of a nail a machine guessed; they are no ground truth until a person confirms them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    by: str = ""  # e.g. "mediapipe 0.10.21 hands"
    # Label -> confidence 0..1, None where the machine gave none. What is not named, a person made.
    labels: dict[Label, Annotated[float, Field(ge=0, le=1)] | None] = Field(min_length=1)
    confirmed: bool = False  # a person looked at them and found them right

    def guessed(self, label: Label) -> bool:
        """Whether a label is a guess that nobody confirmed."""
        return label in self.labels and not self.confirmed


class NailRecord(BaseModel):
    """One nail: its class and the points its direction runs between, in image pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    finger: str | None  # one of nailcore.variant.FINGER_CLASSES, None: unknown
    base: Point | None
    tip: Point | None
    area_px: int
    hidden: tuple[Literal["base", "tip"], ...] = ()  # known, but covered or beyond the border of the image
    machine: MachineMade | None = None  # None: everything known of it comes from a person or from geometry

    @field_validator("finger")
    @classmethod
    def _known(cls, finger: str | None) -> str | None:
        if finger is not None and finger not in FINGER_CLASSES:
            raise ValueError(f"'{finger}' is no finger; known: {', '.join(FINGER_CLASSES)}")
        return finger

    @field_validator("base", "tip")
    @classmethod
    def _finite(cls, point: Point | None) -> Point | None:
        if point is not None and not np.isfinite(point).all():
            raise ValueError("a keypoint must be two finite numbers")
        return point

    @property
    def finger_class(self) -> int:
        """Index into FINGER_CLASSES, or UNKNOWN_FINGER."""
        return UNKNOWN_FINGER if self.finger is None else FINGER_CLASSES.index(self.finger)

    def without_guesses(self) -> NailRecord:
        """The same nail without what only a machine says of it: that counts as unknown."""
        if self.machine is None:
            return self
        changes: dict[str, None] = {}
        if self.machine.guessed("finger"):
            changes["finger"] = None
        if self.machine.guessed("direction"):
            changes |= {"base": None, "tip": None}
        return self.model_copy(update=changes) if changes else self

    def accepting_guesses(self, least_confidence: float) -> NailRecord:
        """The same nail with guesses of at least this confidence taken for truth; unknown ones count as 0."""
        if self.machine is None or self.machine.confirmed:
            return self
        doubtful = {k: v for k, v in self.machine.labels.items() if (v or 0.0) < least_confidence}
        machine = self.machine.model_copy(update={"labels": doubtful}) if doubtful else None
        return self.model_copy(update={"machine": machine})


class ImageRecord(BaseModel):
    """What one image declares about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    labels: tuple[Label, ...] = ("mask",)
    subject: str | None = None
    nails: tuple[NailRecord, ...] = ()

    def with_true_labels(self) -> ImageRecord:
        """The record without labels that its nails have from a machine alone, and with confirmed ones.

        The nails stay as they are.
        """

        def said(nail: NailRecord, label: Label) -> bool:
            return bool(nail.finger if label == "finger" else nail.base or nail.tip)

        def carries(label: Label) -> bool:
            named = [nail for nail in self.nails if said(nail, label)]
            if any(n.machine and n.machine.confirmed and label in n.machine.labels for n in named):
                return True
            guessed = named and all(n.machine and n.machine.guessed(label) for n in named)
            return label in self.labels and not guessed

        kept = tuple(
            label for label in LABELS if (label in self.labels if label == "mask" else carries(label))
        )
        return self if set(kept) == set(self.labels) else self.model_copy(update={"labels": kept})

    def accepting_guesses(self, least_confidence: float) -> ImageRecord:
        """The record with surer guesses taken for truth, and their labels declared."""
        nails = tuple(nail.accepting_guesses(least_confidence) for nail in self.nails)
        gained = {
            label
            for old, new in zip(self.nails, nails, strict=True)
            if old.machine is not None and not old.machine.confirmed
            for label in old.machine.labels
            if new.machine is None or label not in new.machine.labels
        }
        labels = tuple(label for label in LABELS if label in self.labels or label in gained)
        return self.model_copy(update={"labels": labels, "nails": nails})


def carried_labels(nails: Iterable[NailRecord]) -> tuple[Label, ...]:
    """The labels that people gave to at least one nail, and the mask; those of machines alone are not."""
    known = [nail.without_guesses() for nail in nails]
    labels: list[Label] = ["mask"]
    if any(nail.finger for nail in known):
        labels.append("finger")
    if any(nail.base and nail.tip for nail in known):
        labels.append("direction")
    return tuple(labels)


@dataclass(frozen=True)
class Labels:
    """All labels of one image; dense maps are made from the nails when asked for."""

    nail_index: IndexMap  # (H, W) 0 background, k: nails[k - 1]
    nails: tuple[NailRecord, ...]
    labels: frozenset[Label]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) all nails."""
        return self.nail_index > 0

    @property
    def finger(self) -> npt.NDArray[np.int8]:
        """(H, W) index into FINGER_CLASSES; UNKNOWN_FINGER outside nails and where nobody said."""
        table = np.full(256, UNKNOWN_FINGER, np.int8)
        if "finger" in self.labels:
            for k, nail in enumerate(self.nails, start=1):
                table[k] = nail.finger_class
        return table[self.nail_index]

    @property
    def direction(self) -> npt.NDArray[np.float32]:
        """(2, H, W) unit vectors base -> tip (x right, y down) inside nails, 0 elsewhere or if unknown."""
        return direction_table(self.nails, self.labels)[:, self.nail_index]


def direction_table(nails: tuple[NailRecord, ...], labels: frozenset[Label]) -> npt.NDArray[np.float32]:
    """(2, 256) unit vector of each nail index; zeros for background and unknown directions."""
    table = np.zeros((2, 256), np.float32)
    if "direction" in labels:
        for k, nail in enumerate(nails, start=1):
            if nail.base is not None and nail.tip is not None:
                table[:, k] = unit_vector(nail.base, nail.tip)
    return table


def unit_vector(base: Point, tip: Point) -> npt.NDArray[np.float64]:
    """(2,) from base to tip, length 1; zeros when the points coincide: a nail seen end-on has none."""
    vector = np.subtract(tip, base, dtype=np.float64)
    length = float(np.hypot(*vector))
    return vector / length if length > 1e-6 else np.zeros(2)


def match_nails(mask: npt.NDArray[np.bool_], nails: tuple[NailRecord, ...]) -> IndexMap:
    """(H, W) nail index of a binary mask whose nails lie apart, by the points each record names.

    A blob belongs to the record whose base-to-tip line runs furthest inside it; blobs that no
    record reaches are numbered after the records, as nails of which nothing is known.
    """
    import cv2

    count, blobs = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    owner = np.zeros(count, np.uint8)
    votes = np.zeros((count, len(nails)), np.int64)
    height, width = mask.shape
    for k, nail in enumerate(nails):
        if nail.base is None or nail.tip is None:
            continue
        line = np.linspace(nail.base, nail.tip, 41)
        columns = np.clip(np.round(line[:, 0]).astype(int), 0, width - 1)
        rows = np.clip(np.round(line[:, 1]).astype(int), 0, height - 1)
        votes[:, k] = np.bincount(blobs[rows, columns], minlength=count)
    free = len(nails) + 1
    for blob in range(1, count):
        if votes.shape[1] and votes[blob].max() > 0:
            owner[blob] = int(votes[blob].argmax()) + 1
        else:
            owner[blob] = min(free, MAX_NAILS)
            free += 1
    return np.asarray(owner[blobs], np.uint8)
