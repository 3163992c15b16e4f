"""What is said before the first step of a training, because after the last it would be too late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nailcore.errors import DataError

if TYPE_CHECKING:
    from nailcore.data.folder import Dataset


def check_part(dataset: Dataset, which: Literal["train", "test"]) -> None:
    """Raises DataError when a part of the data set's split is empty."""
    if not dataset.part(which):
        raise DataError(
            f"{dataset.root}: the {which} part of its split is empty; a training learns from one part and is "
            "measured on the other.",
            hint="`nailtool data split --force` writes another split (see docs/data.md).",
        )


def check_apart(sources: Sequence[Dataset]) -> None:
    """Raises DataError when a photo (byte for byte) is learnt in one data set and held out in another."""
    from nailcore.storage import hash_file

    if len(sources) < 2:
        return
    learnt = [{hash_file(sample.image): sample.image for sample in s.part("train")} for s in sources]
    for number, source in enumerate(sources):
        for sample in source.part("held-out"):
            key = hash_file(sample.image)
            twin = next((kept[key] for k, kept in enumerate(learnt) if k != number and key in kept), None)
            if twin is not None:
                raise DataError(
                    f"{sample.image}: is held out here, and learnt as {twin} in another --data.",
                    hint="Figures would be of photos that were learnt: hold both copies out, or remove one.",
                )
