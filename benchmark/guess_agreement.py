"""Fingers and directions against a machine's guesses: ``python -m benchmark.guess_agreement``.

Agreement is not accuracy: nobody confirmed the guesses (``nailtool data autolabel``). It tells how far heads
that learnt from rendered hands carry over to photographs, where no labels of people are at hand.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmark.program import run_program
from nailcore.data.folder import Dataset, Sample
from nailcore.errors import DataError, NailtoolError
from nailcore.facts import AccuracyResult, Fact, ImageSet, Interval, Machine

HEADS = ("finger", "direction")


class GuessAgreement(Fact):
    """One variant's weights against the guesses on held-out photographs; intervals over photographs, 95 %."""

    variant: str
    weights: str
    weights_sha256: str
    images: ImageSet  # those with a guess that is sure enough
    least_confidence: float
    nails: int  # with such a guess
    same_finger: Interval  # share of them, 0..1, named together as try-on does it
    same_finger_alone: Interval  # each nail named by itself
    direction_difference_median_deg: Interval
    direction_difference_p90_deg: Interval
    machine: Machine
    versions: dict[str, str]


def accept_guesses(dataset: Dataset, least: float) -> Dataset:
    """The held-out photographs that carry finger and direction, guesses of this confidence taken for truth.

    Raises:
        DataError: there are none.
    """
    surer = (
        replace(sample, record=sample.record.accepting_guesses(least)) for sample in dataset.part("held-out")
    )
    kept: tuple[Sample, ...] = tuple(s for s in surer if set(HEADS) <= set(s.record.labels))
    if not kept:
        raise DataError(
            f"{dataset.root}: no held-out photo has a finger and a direction guessed with a confidence of "
            f"{least:g}.",
            hint="`nailtool data autolabel` guesses them; --confidence asks for less.",
        )
    return replace(dataset, samples=kept, split=None)


def measure_agreement(variant: str, weights: Path, dataset: Dataset, least: float) -> GuessAgreement:
    """Run the network over the photographs with guesses.

    Raises:
        DataError, WeightsError, UnknownNameError: an input is missing or damaged, or nothing was guessed.
    """
    from benchmark.accuracy import evaluate_accuracy
    from model_zoo import find_variant

    chosen = accept_guesses(dataset, least)
    with tempfile.TemporaryDirectory() as scratch:
        result = evaluate_accuracy(
            find_variant(variant), weights, chosen, "held-out", Path(scratch), heads=("fgbg", *HEADS)
        )
    return _describe(result, least)


def _describe(result: AccuracyResult, least: float) -> GuessAgreement:
    figures = (
        result.finger_accuracy,
        result.finger_accuracy_alone,
        result.direction_error_median_deg,
        result.direction_error_p90_deg,
    )
    same, alone, median, p90 = (figure for figure in figures if figure is not None)
    return GuessAgreement(
        variant=result.variant,
        weights=result.weights,
        weights_sha256=result.weights_sha256,
        images=result.images,
        least_confidence=least,
        nails=sum(nail.finger_right is not None for image in result.per_image for nail in image.nails),
        same_finger=same,
        same_finger_alone=alone,
        direction_difference_median_deg=median,
        direction_difference_p90_deg=p90,
        machine=result.machine,
        versions=result.versions,
    )


def render_markdown(results: list[GuessAgreement]) -> str:
    """One row for each variant; percent and degrees."""
    first = results[0]
    lines = [
        f"{first.images.count} held-out photographs of {first.images.name}, {first.nails} nails: fingers and "
        f"directions that a machine guessed with a confidence of at least {first.least_confidence:g}, "
        "confirmed by nobody.",
        "",
        "| variant | same finger, % | named alone, % | direction apart, median | p90 |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        fingers = " | ".join(i.tell(scale=100) for i in (r.same_finger, r.same_finger_alone))
        angles = " | ".join(
            i.tell(unit="°") for i in (r.direction_difference_median_deg, r.direction_difference_p90_deg)
        )
        lines.append(f"| {r.variant} | {fingers} | {angles} |")
    return "\n".join(lines) + "\n"


def main(
    data: Annotated[Path, typer.Option(help="Data folder with machine-made labels and a held-out part.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures: VARIANT.json.")],
    variants: Annotated[str, typer.Option(help="A,B: these variants.")] = "nail55-480,nail43-480",
    weights: Annotated[Path | None, typer.Option(help="Of a single variant; without it, what ships.")] = None,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="The least that counts.")] = 0.6,
) -> None:
    """Compare what the heads say with what a machine guessed, on held-out photographs."""
    from model_zoo import find_variant, weights_path
    from nailcore.data.folder import open_dataset
    from nailcore.facts import write_fact

    names = variants.split(",")
    if weights is not None and len(names) > 1:
        raise NailtoolError(
            f"--weights {weights.name} with {len(names)} variants, {', '.join(names)}: a file is of one.",
            hint="Name it: --variants nail55-480.",
        )
    dataset, results = open_dataset(data), []
    for name in names:
        file = weights if weights is not None else weights_path(find_variant(name))
        results.append(measure_agreement(name, file, dataset, confidence))
        write_fact(out / f"{name}.json", results[-1])
    typer.echo(render_markdown(results))


if __name__ == "__main__":
    run_program(main)
