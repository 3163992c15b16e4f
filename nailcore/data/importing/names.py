"""What other people's label names mean: a finger, a nail of unknown finger, or something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nailcore.errors import NailtoolError, UnknownNameError
from nailcore.variant import FINGER_CLASSES

NAIL, SKIP = "nail", "skip"
_HANDS = {"left": "left", "l": "left", "lh": "left", "right": "right", "r": "right", "rh": "right"}
_FINGERS = {
    "thumb": "thumb",
    "index": "index",
    "pointer": "index",
    "forefinger": "index",
    "middle": "middle",
    "ring": "ring",
    "pinky": "pinky",
    "pinkie": "pinky",
    "little": "pinky",
}
_NAILS = {"nail", "nails", "fingernail", "fingernails", "nailplate"}


@dataclass(frozen=True)
class Meaning:
    """What one label says."""

    is_nail: bool
    finger: str | None = None  # one of FINGER_CLASSES


def split_words(text: str) -> list[str]:
    """Lower-case words of ``LeftIndex``, ``left_index`` or ``Left index (nail)``."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)]


def read_meaning(text: str) -> Meaning:
    """Which finger a label names; a finger without its hand is a nail of unknown finger."""
    words = split_words(text)
    hands = {_HANDS[word] for word in words if word in _HANDS}
    fingers = {_FINGERS[word] for word in words if word in _FINGERS}
    if len(fingers) == 1 and len(hands) == 1:
        return Meaning(True, f"{hands.pop()} {fingers.pop()}")
    if "toe" in words:
        return Meaning(False)
    return Meaning(bool(fingers) or any(word in _NAILS for word in words))


def parse_meanings(texts: Iterable[str]) -> dict[str, str]:
    """``NAME=left thumb``, ``NAME=nail`` or ``NAME=skip``, as given on the command line.

    Raises:
        NailtoolError: no ``=`` in it; UnknownNameError: another meaning.
    """
    found = {}
    for text in texts:
        name, sign, meaning = text.rpartition("=")
        if not sign or not name:
            raise NailtoolError(
                f"--label '{text}': expected NAME=MEANING.", hint="For example: --label polish=nail"
            )
        if meaning not in (*FINGER_CLASSES, NAIL, SKIP):
            raise UnknownNameError("meaning of a label", meaning, (*FINGER_CLASSES, NAIL, SKIP))
        found[name] = meaning
    return found


class Dictionary:
    """The meanings of a source's label names: what the user said, then what the names themselves say.

    Where no name says so, a source with one single name is taken to mean nails by it.
    """

    def __init__(self, names: Iterable[str], told: Mapping[str, str], where: str) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.told = told
        unknown = sorted(set(told) - set(self.names))
        if unknown:
            raise UnknownNameError(f"label in {where}", unknown[0], self.names)
        self.single = len(self.names) == 1
        if self.names and not any(self.find(name).is_nail for name in self.names):
            raise NailtoolError(
                f"{where}: none of its labels names a nail: {', '.join(self.names[:12])}.",
                hint=f"Say which do: --label '{self.names[0]}=nail' (or =left thumb, ..., or =skip).",
            )

    def find(self, name: str, more: str = "") -> Meaning:
        """The meaning of a label; ``more`` are words that stand beside it (attributes, flags)."""
        told = self.told.get(name)
        if told == SKIP:
            return Meaning(False)
        # What the name itself says goes before the words beside it.
        own = read_meaning(name)
        own = own if own.finger is not None or not more else read_meaning(f"{name} {more}")
        if told == NAIL:
            return Meaning(True, own.finger)
        if told is not None:
            return Meaning(True, told)
        return Meaning(True, own.finger) if self.single else own

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names that mean no nail."""
        return tuple(name for name in self.names if not self.find(name).is_nail)
