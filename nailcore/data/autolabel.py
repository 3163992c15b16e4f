"""Fingers and directions for nails that have only a mask, guessed from MediaPipe's hand landmarks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nailcore.data import hands_worker
from nailcore.data.coco import (
    UNKNOWN_ID,
    CocoImage,
    CocoNail,
    describe_direction,
    find_annotations,
    group_nails,
    rasterise,
    read_coco,
    write_entries,
)
from nailcore.data.labels import Label, MachineMade, Point
from nailcore.data.shapes import Mask
from nailcore.errors import DataError, MissingToolError
from nailcore.storage import hash_file
from nailcore.variant import FINGER_CLASSES, FINGERS

SETUP = (
    "MediaPipe's hand models need an environment of their own: `python3.11 -m venv hands && "
    "hands/bin/pip install mediapipe==0.10.21`, then --python hands/bin/python."
)
WORKER = Path(hands_worker.__file__)
VIEWS = len(hands_worker.VIEWS)
NEAR = 0.35  # how far a nail's middle may lie from its landmark, as a share of the palm's length
NAIL_PLACE = 0.7  # where the nail's middle lies between the last joint (0) and the fingertip (1)
SAME_WAY_DEG = 40.0  # directions of two views that agree
LEAST_CONFIDENCE = 0.15  # about one view of six: below it, nothing is said
# Landmarks of MediaPipe's hand: 0 wrist, 9 knuckle of the middle finger, last joint and tip of each finger.
_WRIST, _KNUCKLE = 0, 9
_LAST_JOINTS, _TIPS = (3, 7, 11, 15, 19), (4, 8, 12, 16, 20)
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Hand:
    """One hand as one view shows it, in pixels of the upright photo."""

    view: str
    side: Literal["left", "right"]  # whose hand it is, not MediaPipe's word for it
    score: float
    points: Vector  # (21, 2)

    @property
    def palm_px(self) -> float:
        """Wrist to the knuckle of the middle finger."""
        return float(np.hypot(*(self.points[_KNUCKLE] - self.points[_WRIST])))


@dataclass(frozen=True)
class Guess:
    """What is said of one nail."""

    finger: str | None
    direction: tuple[float, float] | None  # unit vector from base to tip
    finger_confidence: float
    direction_confidence: float


@dataclass(frozen=True)
class _Vote:
    view: str
    finger: str
    direction: Vector
    weight: float  # 0..1: the hand's score times how near the nail lies to its landmark


def read_hands(answer: Sequence[Mapping[str, Any]]) -> list[Hand]:
    """Hands as the worker describes them.

    MediaPipe names hands for a mirrored picture, a selfie; photographs are not mirrored, so its left
    hand is the right one.
    """
    return [
        Hand(
            view=str(hand["view"]),
            side="right" if hand["label"] == "Left" else "left",
            score=float(hand["score"]),
            points=np.asarray(hand["points"], np.float64).reshape(21, 2),
        )
        for hand in answer
    ]


def guess_nails(centres: Sequence[Point], hands: Sequence[Hand]) -> list[Guess | None]:
    """What the hands say of nails, given the nails' middles; None where they say nothing.

    Every view votes: in it, nails and fingers are paired so that the distances are least. A nail takes
    the finger with most votes and the mean direction of its votes. Confidence is the share of all views
    that say so, each weighed by the hand's score and the nail's distance from its landmark.
    """
    votes: dict[int, list[_Vote]] = defaultdict(list)
    for view in sorted({hand.view for hand in hands}):
        for nail, vote in _pair(centres, [hand for hand in hands if hand.view == view]):
            votes[nail].append(vote)
    guesses = [_count(votes[nail]) if votes[nail] else None for nail in range(len(centres))]
    return _drop_doubles(guesses, votes)


def _pair(centres: Sequence[Point], hands: Sequence[Hand]) -> list[tuple[int, _Vote]]:
    """Pairs of nails and fingers of one view, each at most once."""
    from scipy.optimize import linear_sum_assignment

    fingers = [(hand, number) for hand in hands for number in range(len(FINGERS)) if hand.palm_px > 1]
    if not fingers or not len(centres):
        return []
    joints = np.array([hand.points[_LAST_JOINTS[n]] for hand, n in fingers])
    tips = np.array([hand.points[_TIPS[n]] for hand, n in fingers])
    places = joints + NAIL_PLACE * (tips - joints)
    palms = np.array([hand.palm_px for hand, _ in fingers])
    far = np.linalg.norm(np.asarray(centres)[:, None] - places[None], axis=2) / palms
    # Pairs beyond NEAR cost all the same, so that they draw no nail away from a finger it is near to.
    pairs = []
    for nail, at in zip(*linear_sum_assignment(np.minimum(far, NEAR)), strict=True):
        hand, number = fingers[at]
        vector = tips[at] - joints[at]
        length = float(np.hypot(*vector))
        if far[nail, at] >= NEAR or length < 1e-6:
            continue
        weight = hand.score * (1 - far[nail, at] / NEAR)
        finger = f"{hand.side} {FINGERS[number]}"
        pairs.append((int(nail), _Vote(hand.view, finger, vector / length, float(weight))))
    return pairs


def _count(votes: Sequence[_Vote]) -> Guess | None:
    for_finger: dict[str, float] = defaultdict(float)
    for vote in votes:
        for_finger[vote.finger] += vote.weight
    finger = max(FINGER_CLASSES, key=lambda name: for_finger.get(name, 0.0))
    mean = np.sum([vote.direction * vote.weight for vote in votes], axis=0)
    length = float(np.hypot(*mean))
    if length < 1e-6:
        return None
    unit = mean / length
    same_way = np.cos(np.radians(SAME_WAY_DEG))
    agreeing = sum(vote.weight for vote in votes if vote.direction @ unit >= same_way)
    found = Guess(
        finger=finger,
        direction=(float(unit[0]), float(unit[1])),
        finger_confidence=min(1.0, for_finger[finger] / VIEWS),
        direction_confidence=min(1.0, agreeing / VIEWS),
    )
    return found if found.direction_confidence >= LEAST_CONFIDENCE else None


def _drop_doubles(
    guesses: Sequence[Guess | None], votes: Mapping[int, Sequence[_Vote]]
) -> list[Guess | None]:
    """A finger stays on two nails only where one view saw two such hands; else the surer nail has it."""
    kept = list(guesses)
    known = [(k, guess) for k, guess in enumerate(guesses) if guess is not None]
    owners: dict[str, int] = {}
    for k, guess in sorted(known, key=lambda pair: -pair[1].finger_confidence):
        first = owners.setdefault(str(guess.finger), k)
        if first == k:
            continue
        seen = [{v.view for v in votes[n] if v.finger == guess.finger} for n in (first, k)]
        if not seen[0] & seen[1]:
            kept[k] = Guess(None, guess.direction, 0.0, guess.direction_confidence)
    return kept


# -- the folder ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AutoLabelled:
    """What was guessed in a folder."""

    by: str
    photos: int
    nails: int
    with_hands: int  # photos in which a hand was found
    fingers: int
    directions: int
    kept: int  # nails left alone: people had named finger and direction


def autolabel_folder(
    root: Path, python: Path, cache: Path, *, progress: Callable[[int, int], None] | None = None
) -> AutoLabelled:
    """Write guesses into ``annotations.json`` for nails of unknown finger or direction, marked machine-made.

    What people said is never changed; guesses of an earlier run that nobody confirmed are made anew.
    ``cache`` keeps the hands found so far, by the hash of the photo: a stopped run goes on.

    Raises:
        DataError: the folder has no annotations.json, or something in it is damaged.
        MissingToolError: ``python`` has no MediaPipe with hand models.
    """
    path = find_annotations(root)
    file = read_coco(path)
    nails, data = group_nails(file), json.loads(path.read_bytes())
    entries = {entry["id"]: entry for entry in data["annotations"]}
    counts: dict[str, int] = defaultdict(int)
    photos = [root / "images" / image.file_name for image in file.images]
    by = ""
    for number, (by, hands) in enumerate(detect(photos, python, cache)):
        if progress is not None:
            progress(number + 1, len(photos))
        image = file.images[number]
        counts["with_hands"] += bool(hands)
        counts["nails"] += len(nails[image.id])
        _label_image(path, image, nails[image.id], hands, by, entries, counts)
    write_entries(path, data)
    return AutoLabelled(
        by=by,
        photos=len(photos),
        **{key: counts[key] for key in ("nails", "with_hands", "fingers", "directions", "kept")},
    )


def _label_image(  # noqa: PLR0917 - one step of the loop above
    path: Path,
    image: CocoImage,
    nails: Sequence[CocoNail],
    hands: Sequence[Hand],
    by: str,
    entries: Mapping[int, dict[str, Any]],
    counts: dict[str, int],
) -> None:
    masks = [rasterise(path, image, [nail]) > 0 for nail in nails]
    centres = [(float(c.mean()) + 0.5, float(r.mean()) + 0.5) for r, c in map(np.nonzero, masks)]
    guesses = guess_nails(centres, hands)
    for nail, mask, guess in zip(nails, masks, guesses, strict=True):
        free = find_free_labels(nail)
        counts["kept"] += not free
        made = apply_guess(entries[nail.id], free, guess, mask, by)
        counts["fingers"] += "finger" in made
        counts["directions"] += "direction" in made


def find_free_labels(nail: CocoNail) -> set[Label]:
    """Which of finger and direction nobody but a machine has said anything about."""
    guessed = nail.machine if nail.machine is not None and not nail.machine.confirmed else None
    free: set[Label] = set()
    if nail.category_id == UNKNOWN_ID or (guessed and guessed.guessed("finger")):
        free.add("finger")
    if (nail.point("base") is None and nail.point("tip") is None) or (
        guessed and guessed.guessed("direction")
    ):
        free.add("direction")
    return free


def apply_guess(
    entry: dict[str, Any], free: set[Label], guess: Guess | None, mask: Mask, by: str
) -> set[Label]:
    """Put a guess into an annotation as far as it is free, or take an old guess out; returns what was put."""
    made: dict[Label, float] = {}
    if "finger" in free:
        entry["category_id"] = UNKNOWN_ID
        if guess is not None and guess.finger is not None:
            entry["category_id"] = FINGER_CLASSES.index(guess.finger) + 1
            made["finger"] = round(guess.finger_confidence, 3)
    if "direction" in free:
        entry |= describe_direction(mask, guess.direction if guess is not None else None)
        if guess is not None and guess.direction is not None:
            made["direction"] = round(guess.direction_confidence, 3)
    if free:
        entry.pop("machine", None)
    if made:
        entry["machine"] = MachineMade(by=by, labels=dict(made)).model_dump(mode="json")
    return set(made)


# -- the worker ----------------------------------------------------------------------------------------
def detect(photos: Sequence[Path], python: Path, cache: Path) -> Iterator[tuple[str, list[Hand]]]:
    """Who looked ("mediapipe 0.10.21 hands") and the hands of each photo, in their order.

    Raises:
        MissingToolError: see ``autolabel_folder``.
        DataError: a photo cannot be read.
    """
    with Detector(python) as detector:
        known = _read_cache(cache, detector.by)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as stream:
            for photo in photos:
                key = hash_file(photo) if photo.is_file() else ""
                if key not in known:
                    known[key] = detector.ask(photo)
                    line = {"by": detector.by, "sha256": key, "hands": known[key]}
                    stream.write(json.dumps(line) + "\n")
                    stream.flush()
                yield detector.by, read_hands(known[key])


def _read_cache(path: Path, by: str) -> dict[str, list[dict[str, Any]]]:
    """Photo's hash -> answers of the same version; half-written lines of a killed run are passed over."""
    known = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            if entry["by"] == by:
                known[entry["sha256"]] = entry["hands"]
        except (ValueError, KeyError, TypeError):
            continue
    return known


class Detector:
    """The worker in its own Python, asked photo by photo."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self.by = ""

    def __enter__(self) -> Detector:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                [str(self.python), str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise MissingToolError(f"{self.python}: cannot be run: {error.strerror}.", hint=SETUP) from error
        try:
            self.by = f"mediapipe {self._answer()['mediapipe']} hands"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def ask(self, photo: Path) -> list[dict[str, Any]]:
        """The hands of one photo, as the worker describes them; raises DataError naming it."""
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(json.dumps({"id": 0, "path": str(photo.resolve())}) + "\n")
                stdin.flush()
        except OSError:  # it died: its last words say more
            pass
        answer = self._answer()
        if "error" in answer:
            raise DataError(f"{photo}: {answer['error']}.", hint="`nailtool data check` looks at all photos.")
        return list(answer["hands"])

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            words = [text for text in self._errors.read().splitlines() if text.strip()]
            raise MissingToolError(
                f"{self.python}: finds no hands: {words[-1] if words else 'it ended without a word'}.",
                hint=SETUP,
            )
        return dict(json.loads(line))
