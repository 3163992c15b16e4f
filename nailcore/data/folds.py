"""Grouped cross-validation: a data set cut into folds that keep every person or photo shoot whole."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nailcore.data.copies import join_groups
from nailcore.data.folder import Dataset, SplitFile
from nailcore.errors import DataError, NailtoolError


@dataclass(frozen=True)
class Fold:
    """One of several folds, counted from 1: ``2/5``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Fold:
        """Read ``k/n`` with 1 <= k <= n and n >= 2; raises NailtoolError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is not None:
            number, count = int(match[1]), int(match[2])
            if count >= 2 and 1 <= number <= count:
                return cls(number, count)
        raise NailtoolError(f"Fold '{text}': expected k/n such as 1/5, with k from 1 to n.")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def make_folds(dataset: Dataset, count: int) -> tuple[tuple[str, ...], ...]:
    """Names of groups by fold: the largest groups first, each into the fold with the fewest images.

    Groups with photographs of one person (a group for each shoot, say) go into one fold together. The same
    for the same split file, whatever the order of its entries; ties are broken by a hash of the group's name.

    Raises:
        DataError: there is no written split, or fewer groups than folds.
    """
    if dataset.split is None:
        raise DataError(
            f"{dataset.root}: has no written split, so nobody said which images belong together.",
            hint="Put a split.json with groups into the folder (see docs/data.md).",
        )
    groups = dataset.split.groups
    whole = _join_people(dataset, groups)
    if len(whole) < count:
        people = "" if len(whole) == len(groups) else f" ({len(whole)} of different people)"
        raise DataError(f"{dataset.root}: {len(groups)} groups{people} cannot be cut into {count} folds.")

    def count_images(names: tuple[str, ...]) -> int:
        return sum(len(groups[name]) for name in names)

    def order(names: tuple[str, ...]) -> tuple[int, str]:
        return (-count_images(names), hashlib.sha256("+".join(names).encode()).hexdigest())

    folds: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for names in sorted(whole, key=order):
        smallest = sizes.index(min(sizes))
        folds[smallest] += names
        sizes[smallest] += count_images(names)
    return tuple(tuple(sorted(fold)) for fold in folds)


def _join_people(dataset: Dataset, groups: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The groups that hold photographs of one person, together; most stand alone."""
    where = {stem: name for name, stems in groups.items() for stem in stems}
    people: dict[str, set[str]] = defaultdict(set)
    for sample in dataset.samples:
        if sample.record.subject is not None:
            people[sample.record.subject].add(where[sample.name])
    joined = join_groups([*([name] for name in groups), *people.values()])
    return [tuple(sorted(map(str, names))) for names in joined]


def select_fold(dataset: Dataset, fold: Fold) -> Dataset:
    """The data set with one fold held out, instead of what its split holds out.

    Raises:
        DataError: see ``make_folds``.
    """
    folds = make_folds(dataset, fold.count)
    assert dataset.split is not None  # noqa: S101 - make_folds said so; for mypy
    split = SplitFile(
        dataset=f"{dataset.split.dataset} fold {fold}",
        note=dataset.split.note,
        groups=dataset.split.groups,
        held_out=folds[fold.number - 1],
    )
    card = dataset.card.model_copy(update={"name": f"{dataset.card.name} fold {fold}"})
    return replace(dataset, split=split, card=card)
