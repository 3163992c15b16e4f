"""Trained weights into the model zoo: when they beat what lies there, or under a name of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nailcore.errors import NailtoolError, tell_problems
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact
from nailtool.training import WEIGHTS_SUFFIXES, TrainOrder, choose_variants, find_depth, open_sources

if TYPE_CHECKING:
    from nailcore.variant import Variant


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
                hint="Train without --ship, and give the result a name of its own: nailtool adopt.",
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
                hint="Train with the same --data, or give these a name of their own: nailtool adopt.",
            )
        if _headline(facts.accuracy) <= _headline(old.accuracy):
            return (
                f"Not shipped: nail IoU {_headline(facts.accuracy):.4f} does not beat "
                f"the shipped {_headline(old.accuracy):.4f}."
            )
    _install(out / f"{facts.weights}.safetensors", facts.weights)
    return (
        f"Shipped {facts.weights}: nail IoU {_headline(facts.accuracy):.4f} at {facts.accuracy[0].variant}."
    )


def adopt_weights(weights: Path, name: str, *, replace: bool = False) -> Variant:
    """Make a variant of trained weights: weights, facts and card into the zoo, and a declaration.

    The name ends in the input size in px, which must be one that the weights were measured at. The facts go
    on to say which training the weights are of.

    Raises:
        NailtoolError: the name is taken (and not ``replace``, or by another network), not a variant's, or of
            another size; or there are no facts beside the weights.
        WeightsError: the file is damaged, or holds another network than its facts say.
    """
    from model_zoo import VARIANTS_DIR, load_variants
    from nailcore.nets.weights import load_weights
    from nailcore.storage import write_text

    for suffix in WEIGHTS_SUFFIXES:
        if not weights.with_suffix(suffix).is_file():
            raise NailtoolError(
                f"{weights.with_suffix(suffix)}: no such file.",
                hint="Name the .safetensors file of a training; facts (.json) and card (.md) lie beside it.",
            )
    facts = read_fact(weights.with_suffix(".json"), WeightsFacts)
    variant = _declare(facts, name)
    before = load_variants().get(name)
    if before is not None and not replace:
        raise NailtoolError(
            f"There is a variant {name} already.",
            hint="Choose another --name, or say --replace: its weights are then gone from model_zoo/weights.",
        )
    if before is not None and before != variant:
        raise NailtoolError(
            f"{name} is declared as another network than {facts.weights}, which has the encoder "
            f"{facts.encoder}, {facts.encoder_layers} layers and fusion width {facts.fusion_width}.",
            hint="Choose another --name.",
        )
    load_weights(variant, weights)  # the network it declares, undamaged
    _install(weights, name)
    if before is None:
        write_text(VARIANTS_DIR / f"{name}.toml", _render_declaration(variant, facts))
    load_variants.cache_clear()
    return variant


def _declare(facts: WeightsFacts, name: str) -> Variant:
    """The variant under its new name, checked."""
    from pydantic import ValidationError

    from nailcore.nets.encoder import with_encoder
    from nailcore.variant import Variant

    measured = {result.variant for result in facts.accuracy}
    family = [with_encoder(v, facts.encoder) for v in find_depth(facts.encoder_layers)]
    known = [v for v in family if v.name in measured] or family  # facts of other weights: loading tells
    sizes = {str(v.height_px): v for v in known}
    word, _, size = name.rpartition("-")
    if size not in sizes:
        raise NailtoolError(
            f"'{name}' cannot be the name: {facts.weights} was measured at {' and '.join(sizes)} px.",
            hint=f"A word, a hyphen and one of these sizes, such as {word or 'mine'}-{next(iter(sizes))}.",
        )
    changed = {"name": name, "weights": name, "fusion_width": facts.fusion_width}
    try:
        return Variant(**{**sizes[size].model_dump(), **changed})
    except ValidationError as error:
        raise NailtoolError(
            f"'{name}' cannot be a variant's name: {tell_problems(error, 'variant')}",
            hint="A word, a hyphen and the input size, such as mine-480.",
        ) from error


def _render_declaration(variant: Variant, facts: WeightsFacts) -> str:
    """The TOML file; what is as in every variant is left out."""
    learnt = " ".join(facts.trained_on.name.split())  # a comment is one line
    lines = [f"# Adopted from the training {facts.weights} of {facts.trained_at[:10]}: {learnt}."]
    for key, field in type(variant).model_fields.items():
        value = getattr(variant, key)
        if value != field.default:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _install(weights: Path, name: str) -> None:
    """Copy weights, card and facts into the zoo under one name."""
    from model_zoo import WEIGHTS_DIR
    from nailcore.storage import replacing

    if weights.resolve() == (WEIGHTS_DIR / f"{name}.safetensors").resolve():
        return  # they lie there already
    # The facts go first and come last: they never describe other weights than those beside them.
    (WEIGHTS_DIR / f"{name}.json").unlink(missing_ok=True)
    for suffix in WEIGHTS_SUFFIXES:
        with replacing(WEIGHTS_DIR / f"{name}{suffix}") as scratch:
            shutil.copyfile(weights.with_suffix(suffix), scratch)
