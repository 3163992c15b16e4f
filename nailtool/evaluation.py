"""Accuracy outside the pipeline: a weights file in hand, and folds pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nailcore.errors import NailtoolError, UnknownNameError
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact, write_fact


def evaluate_file(
    weights: Path, data: Path | None, variants: str | None, *, out: Path, part: str, fold: str
) -> AccuracyResult:
    """Measure one weights file as one variant; writes the fact and its overlays to ``out``.

    Without ``data`` on the embedded set, with all of its images, unpacked to ``out/embedded-whole``.

    Raises:
        NailtoolError: not exactly one variant.
        WeightsError, DataError: an input cannot be used.
    """
    from benchmark.accuracy import evaluate_accuracy
    from model_zoo import find_variant
    from nailcore.data.folder import PARTS, open_dataset
    from nailcore.data.folds import Fold, select_fold
    from nailcore.nets.encoder import with_encoder
    from nailcore.nets.weights import read_encoder
    from nailtool.jobs import unpack_embedded

    if part not in PARTS:
        raise UnknownNameError("part", part, PARTS)
    if not variants or "," in variants:
        raise NailtoolError(
            f"--weights measures one variant, --variants names {variants or 'none'}.",
            hint="For example: --variants nail55-480.",
        )
    variant = with_encoder(find_variant(variants.strip()), read_encoder(weights))
    if data is None:
        data = out / "embedded-whole"
        unpack_embedded(out=data, whole=True, progress=lambda done, total: None)
    dataset = open_dataset(data)
    if fold:
        dataset = select_fold(dataset, Fold.parse(fold))
    images = [dataset.root.resolve().name, *([part] if part != "test" else [])]
    images += [f"fold-{fold.strip().replace('/', '-of-')}"] if fold else []
    name = ".".join([weights.stem, variant.name, *images])
    result = evaluate_accuracy(variant, weights, dataset, PARTS[part], out / "overlays" / name)
    write_fact(out / f"{name}.json", result)
    return result


def pool_folds(files: Sequence[Path]) -> list[AccuracyResult]:
    """The photographs of several trainings' facts (or accuracy facts), pooled by variant.

    Raises:
        ArtifactError: a file is missing or holds no such facts.
        DataError: a photograph was held out twice.
    """
    from benchmark.accuracy import pool_accuracy

    by_variant: dict[str, list[AccuracyResult]] = {}
    for path in files:
        for result in _read_results(path):
            by_variant.setdefault(result.variant, []).append(result)
    return [pool_accuracy(results) for results in by_variant.values()]


def _read_results(path: Path) -> list[AccuracyResult]:
    from nailcore.errors import ArtifactError

    try:
        return read_fact(path, WeightsFacts).accuracy
    except ArtifactError:
        return [read_fact(path, AccuracyResult)]
