"""Trained weights into the model zoo, when they beat what lies there."""

from __future__ import annotations

import shutil
from pathlib import Path

from nailcore.errors import NailtoolError
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact
from nailtool.training import WEIGHTS_SUFFIXES, TrainOrder, choose_variants, open_sources


def _headline(accuracy: list[AccuracyResult]) -> float:
    return accuracy[0].nail_iou.value


def check_shippable(order: TrainOrder) -> None:
    """Say before a training why its weights could not be shipped after it.

    Raises:
        NailtoolError: no variant uses weights of the name they will have, or the shipped ones were
            measured on images that this training does not measure on.
    """
    from model_zoo import WEIGHTS_DIR, load_variants

    name, known = choose_variants(order)[0].weights, {v.weights for v in load_variants().values()}
    if name not in known:
        raise NailtoolError(
            f"--ship: no variant uses weights called {name}; there are {', '.join(sorted(known))}.",
            hint="Fine-tune for the input size of one variant, with --input-px.",
        )
    shipped = WEIGHTS_DIR / f"{name}.json"
    if shipped.is_file():
        old = read_fact(shipped, WeightsFacts).accuracy[0].images
        if old.sha256 not in [source.describe("test").sha256 for source in open_sources(order)]:
            raise NailtoolError(
                f"--ship: the shipped {name} was measured on other images ({old.name}) than --data holds, "
                "so nobody could tell which one is better.",
                hint="Train without --ship, and put the files into model_zoo/weights yourself: "
                "docs/training.md says how.",
            )


def ship_weights(out: Path, facts: WeightsFacts) -> str:
    """Copy weights, facts and card into the model zoo when they beat what lies there; says what it did.

    Raises:
        NailtoolError: the two were measured on different images, so that no one can tell.
    """
    from model_zoo import WEIGHTS_DIR

    shipped = WEIGHTS_DIR / f"{facts.weights}.json"
    if shipped.is_file():
        old = read_fact(shipped, WeightsFacts)
        if old.accuracy[0].images.sha256 != facts.accuracy[0].images.sha256:
            raise NailtoolError(
                f"{facts.weights}: the shipped weights were measured on other images "
                f"({old.accuracy[0].images.name}) than these ({facts.accuracy[0].images.name}).",
                hint="Train with the same --data, or replace the files by hand and say why.",
            )
        if _headline(facts.accuracy) <= _headline(old.accuracy):
            return (
                f"Not shipped: nail IoU {_headline(facts.accuracy):.4f} does not beat "
                f"the shipped {_headline(old.accuracy):.4f}."
            )
    WEIGHTS_DIR.mkdir(parents=True, exist_ok=True)
    from nailcore.storage import replacing

    # The facts go first and come last: they never describe other weights than those beside them.
    shipped.unlink(missing_ok=True)
    for suffix in WEIGHTS_SUFFIXES:
        target = WEIGHTS_DIR / f"{facts.weights}{suffix}"
        with replacing(target) as scratch:
            shutil.copyfile(out / target.name, scratch)
    return (
        f"Shipped {facts.weights}: nail IoU {_headline(facts.accuracy):.4f} at {facts.accuracy[0].variant}."
    )
