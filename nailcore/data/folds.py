"""Grouped cross-validation: a data set cut into folds that keep every person or photo shoot whole."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

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

    The same for the same split file, whatever the order of its entries; ties are broken by a hash
    of the group's name.

    Raises:
        DataError: there is no written split, or fewer groups than folds.
    """
    if dataset.split is None:
        raise DataError(
            f"{dataset.root}: has no written split, so nobody said which images belong together.",
            hint="Put a split.json with groups into the folder (see docs/data.md).",
        )
    groups = dataset.split.groups
    if len(groups) < count:
        raise DataError(f"{dataset.root}: {len(groups)} groups cannot be cut into {count} folds.")

    def order(name: str) -> tuple[int, str]:
        return (-len(groups[name]), hashlib.sha256(name.encode()).hexdigest())

    folds: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(groups, key=order):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(name)
        sizes[smallest] += len(groups[name])
    return tuple(tuple(sorted(fold)) for fold in folds)


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
