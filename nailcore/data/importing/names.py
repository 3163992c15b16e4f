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
_BESIDE = {"finger", "fingers", "hand", "of", "the"}  # may stand beside a finger's name
_TOOLS = {"bottle", "brush", "box", "file", "clipper", "clippers", "lamp", "remover", "buffer"}  # nail brush
RING = "ring"  # by itself it may be jewellery


@dataclass(frozen=True)
class Meaning:
    """What one label says."""

    is_nail: bool
    finger: str | None = None  # one of FINGER_CLASSES


def split_words(text: str) -> list[str]:
    """Lower-case words of ``LeftIndex``, ``left_index`` or ``Left index (nail)``."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)]


def read_meaning(text: str) -> Meaning:
    """Which finger a label names; a finger without its hand is a nail of unknown finger.

    Not so beside words that make it something else (``ring box``, ``gold ring``), and not a bare ``ring``.
    """
    words = split_words(text)
    hands = {_HANDS[word] for word in words if word in _HANDS}
    fingers = {_FINGERS[word] for word in words if word in _FINGERS}
    if len(fingers) == 1 and len(hands) == 1:
        return Meaning(True, f"{hands.pop()} {fingers.pop()}")
    if "toe" in words or _TOOLS & set(words):
        return Meaning(False)
    if any(word in _NAILS for word in words):
        return Meaning(True)
    alone = fingers and not set(words) - _FINGERS.keys() - _HANDS.keys() - _BESIDE
    return Meaning(bool(alone) and words != [RING])


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
        fingers = {_FINGERS[word] for name in self.names for word in split_words(name) if word in _FINGERS}
        self.rings = len(fingers) > 1  # among other fingers, a ring is one as well
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
        if self.rings and split_words(name) == [RING]:
            own = Meaning(True)
        if own.finger is None and more:
            both = read_meaning(f"{name} {more}")
            own = both if both.finger is not None or not own.is_nail else own
        if told == NAIL:
            return Meaning(True, own.finger)
        if told is not None:
            return Meaning(True, told)
        return Meaning(True, own.finger) if self.single else own

    @property
    def meanings(self) -> tuple[tuple[str, str], ...]:
        """What each name by itself was taken for: a finger, a nail, or nothing."""
        found = [(name, self.find(name)) for name in self.names]
        return tuple((name, m.finger or (NAIL if m.is_nail else "left out")) for name, m in found)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names that mean no nail."""
        return tuple(name for name in self.names if not self.find(name).is_nail)
