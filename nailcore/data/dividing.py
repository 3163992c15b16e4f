"""A written split: people and near-copies kept whole, the paper's proportions, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nailcore.data.copies import find_copies, hash_photo, join_groups
from nailcore.data.folder import (
    SPLIT_FILE,
    SPLITS_DIR,
    Dataset,
    Part,
    SplitFile,
    find_split,
    open_dataset,
    read_image,
)
from nailcore.errors import DataError, NailtoolError
from nailcore.storage import write_text

PAPER_PROPORTIONS = (941, 254, 243)  # Duke et al. 2019: training, validation and test images
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Division:
    """A split and the near-copies that were joined for it."""

    split: SplitFile
    copies: tuple[tuple[str, str, int], ...]  # two stems and the bits in which their hashes differ
    nameless: int = 0  # photographs that name no person: each counts as one of its own


def parse_proportions(text: str) -> tuple[int, int, int]:
    """``941/254/243`` or, without a validation part, ``4/1``: training, (validation,) test.

    Raises:
        NailtoolError: not two or three whole numbers, or nothing to learn from or to test on.
    """
    words = text.split("/")
    if len(words) in (2, 3) and all(word.strip().isdigit() for word in words):
        numbers = [int(word) for word in words]
        train, validation, test = (numbers[0], 0, numbers[1]) if len(numbers) == 2 else numbers
        if train and test:
            return train, validation, test
    raise NailtoolError(
        f"--parts '{text}': expected TRAIN/VALIDATION/TEST or TRAIN/TEST.",
        hint="For example 941/254/243, as in the paper, or 4/1.",
    )


def divide_folder(
    root: Path,
    *,
    proportions: tuple[int, int, int] = PAPER_PROPORTIONS,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Division:
    """Write ``split.json`` into a data folder.

    Raises:
        DataError: the folder cannot be read, has a split already (its own, or that of a public set which
            ships with the package), or too few people for the parts.
    """
    path = root / SPLIT_FILE
    if path.exists() and not force:
        raise DataError(
            f"{path}: exists already; figures that were measured with it would lose their meaning.",
            hint="Keep it, or write another one with --force.",
        )
    dataset = open_dataset(root, with_split=False)
    known = find_split(root, {sample.name for sample in dataset.samples}) if not path.exists() else None
    if known is not None and not force:
        raise DataError(
            f"{root}: is the public set {known.dataset}, whose split ships with nailtool and is used.",
            hint="Shipped weights were trained by that split: with another one, --force, they would be "
            "measured on what they learnt from.",
        )
    hashes = {}
    for number, sample in enumerate(dataset.samples):
        if progress is not None:
            progress(number, len(dataset.samples))
        hashes[sample.name] = hash_photo(read_image(sample.image))
    if progress is not None:
        progress(len(hashes), len(hashes))
    division = divide(dataset, hashes, proportions, seed)
    write_text(path, division.split.model_dump_json(indent=1) + "\n")
    return division


def divide(
    dataset: Dataset, hashes: Mapping[str, int], proportions: tuple[int, int, int], seed: int
) -> Division:
    """The split of an opened folder; ``hashes`` are the perceptual hashes of its photos by stem."""
    copies = find_copies(hashes)
    subjects = {sample.name: sample.record.subject for sample in dataset.samples}
    groups = name_groups(subjects, copies)
    parts = deal(groups, proportions, seed)
    held_out = tuple(sorted(g for g, part in parts.items() if part != "train"))
    known = sum(subject is not None for subject in subjects.values())
    note = (
        f"By person ({known} of {len(subjects)} images name theirs) and near-copy, "
        f"{'/'.join(map(str, proportions))}, seed {seed}."
    )
    split = SplitFile(
        dataset=dataset.card.name,
        note=note,
        groups={name: tuple(groups[name]) for name in sorted(groups)},
        held_out=held_out,
        validation=tuple(g for g in held_out if parts[g] == "validation"),
    )
    return Division(split, tuple(copies), nameless=len(subjects) - known)


def find_learnt(parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Held-out images that a public set's written split (by which shipped weights were trained) learns from.

    By their names: for folders that hold some of such a set, and a split of their own.
    """
    held_out = {stem for stem, part in parts.items() if part != "train"}
    learnt: set[str] = set()
    for path in sorted(SPLITS_DIR.glob("*.json")):
        known = SplitFile.model_validate_json(path.read_bytes()).parts()
        learnt |= {stem for stem, part in known.items() if part == "train"} & held_out
    return tuple(sorted(learnt))


def name_groups(
    subjects: Mapping[str, str | None], copies: Sequence[tuple[str, str, int]]
) -> dict[str, list[str]]:
    """Group -> sorted stems. Images of one person, and near-copies, share a group; others stand alone.

    A group is named by its people, or by its first image.
    """
    members: dict[object, list[str]] = defaultdict(list)
    for stem, subject in subjects.items():
        members[("person", subject) if subject is not None else ("image", stem)].append(stem)
    groups = {}
    for joined in join_groups([*members.values(), *((a, b) for a, b, _ in copies)]):
        stems = sorted(map(str, joined))
        people = sorted({subjects[stem] for stem in stems} - {None}, key=str)
        name = "+".join(map(str, people)) or stems[0]
        # An image without a person may bear the name of one.
        groups[name if name not in groups else f"{name} ({stems[0]})"] = stems
    return groups


def deal(
    groups: Mapping[str, Sequence[str]], proportions: tuple[int, int, int], seed: int
) -> dict[str, Part]:
    """Group -> part: the largest first, each to the part that lacks most images; every wanted part gets one.

    Equal sizes are ordered by a hash of seed and name, so that the order of the folder decides nothing.

    Raises:
        DataError: fewer groups than wanted parts.
    """
    total = sum(len(stems) for stems in groups.values())
    wanted = {part: share for part, share in zip(PARTS, proportions, strict=True) if share}
    if len(groups) < len(wanted):
        raise DataError(
            f"{len(groups)} groups of images cannot be dealt to {len(wanted)} parts: "
            "a group (a person, or copies of one photo) stays whole.",
            hint="Add photos of other people, or ask for fewer parts: --parts 4/1.",
        )
    lacking = {part: total * share / sum(proportions) for part, share in wanted.items()}
    empty = set(wanted)

    def order(name: str) -> tuple[int, str]:
        return -len(groups[name]), hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    parts: dict[str, Part] = {}
    for place, name in enumerate(sorted(groups, key=order)):
        left = len(groups) - place
        choice = [p for p in wanted if p in empty] if left <= len(empty) else list(wanted)
        part = max(choice, key=lambda p: lacking[p])
        parts[name] = part
        lacking[part] -= len(groups[name])
        empty.discard(part)
    return parts
