"""What a check of a data folder can find, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    level: Level
    remedy: str


KINDS: dict[str, Kind] = {
    # -- photos
    "photo missing": Kind("problem", "Put the photo into images/, or remove its entry."),
    "photo unreadable": Kind(
        "problem", "It is damaged or cut short: replace it or remove it with its labels."
    ),
    "size differs": Kind("problem", "Labels must cover their photo pixel for pixel, after EXIF rotation."),
    "mask missing": Kind("problem", "Add masks/NAME.png, or remove the photo."),
    "mask unreadable": Kind("problem", "Replace it; white (above 127) is nail."),
    "same photo across parts": Kind(
        "problem", "Put both into one group of split.json: `data split --force`."
    ),
    # -- entries
    "entry not valid": Kind("problem", "Mend the entry in annotations.json; docs/data.md has the format."),
    "keypoints not valid": Kind("problem", "x, y and 2; or 0, 0, 0 where nobody knows."),
    "folder not readable": Kind("problem", "No command can open the folder like this (docs/data.md)."),
    # -- shapes
    "nail empty": Kind("problem", "It covers no pixel of the photo: mend its shape or remove it."),
    "nail tiny": Kind("problem", "Too small to learn from; remove it, or draw it on a larger photo."),
    "nail inside out": Kind(
        "problem", "Its outline crosses itself, or the background is marked: draw it again."
    ),
    "nail outside the photo": Kind("problem", "Cut its outline off at the border of the photo."),
    "nails overlap": Kind("problem", "A pixel belongs to one nail: redraw one of the two, or remove a copy."),
    # -- base and tip
    "base or tip outside": Kind("problem", "Both lie on the nail's own outline or inside it."),
    "base equals tip": Kind("problem", "Move them apart, or mark both as unknown (0, 0, 0)."),
    "base and tip swapped": Kind("problem", "It points against the other fingers of its hand: swap them."),
    # -- people and parts
    "person in two parts": Kind("problem", "Give the person one group of split.json: `data split --force`."),
    "split does not fit": Kind("problem", "Write it again: `nailtool data split --force`."),
    # -- worth knowing
    "no split": Kind("note", "All of it is held out, nothing learnt; `nailtool data split` writes one."),
    "no person named": Kind(
        "note", "A person's photos may stand on both sides: `data import --subject`, or `subject` of images."
    ),
    "learnt by what ships": Kind(
        "note", "Shipped weights, and what starts from them, look better on it than on unseen photos."
    ),
    "no nail": Kind("note", "Right where no hand is seen; else its labels are missing."),
    "same photo twice": Kind("note", "Harmless within one part; `data split` keeps copies together."),
    "photo not listed": Kind("note", "It has no labels and is passed over."),
    "unusual photo": Kind("note", "Read as 8-bit RGB; `data import` writes it so."),
    "turned by EXIF": Kind("note", "Read upright; `data import` writes it so."),
    "two nails in one?": Kind(
        "note", "Look (`data show --numbers`): nails that touch need a black line between them in a mask."
    ),
    "one keypoint alone": Kind("note", "A direction needs both: this nail has none."),
    "finger named twice": Kind("note", "One hand has one of each; right if two people are on the photo."),
    "machine-made": Kind("note", "Not used as truth until confirmed (docs/data.md)."),
}


class Finding(BaseModel):
    """One thing found."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str  # a key of KINDS
    file: str
    what: str

    @property
    def level(self) -> Level:
        """Whether it makes the check fail."""
        return KINDS[self.kind].level


class CheckReport(BaseModel):
    """The findings on a folder, problems first, in the order of KINDS."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    photos: int
    nails: int
    people: int
    parts: dict[str, int]  # photos of train, validation and test; empty without a split
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings that make the check fail."""
        return tuple(f for f in self.findings if f.level == "problem")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings that are only worth knowing."""
        return tuple(f for f in self.findings if f.level == "note")


def sort_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Problems before notes, kinds in the order of KINDS, files in alphabetical order."""
    order = list(KINDS)
    return tuple(sorted(findings, key=lambda f: (f.level != "problem", order.index(f.kind), f.file)))
