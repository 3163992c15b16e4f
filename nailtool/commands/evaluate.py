"""`nailtool evaluate`: how well the weights of each variant segment held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import (
    DataOption,
    ForceOption,
    JobsOption,
    JsonOption,
    OutOption,
    QuietOption,
    VariantsOption,
    load_registry,
    note_data,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal, format_interval

if TYPE_CHECKING:
    from nailcore.facts import AccuracyResult, Interval


WEIGHTS_HELP = (
    "Measure this .safetensors file instead of the shipped weights, without the pipeline: weights in "
    "training (NAME.partial.safetensors), of a fold, ... One variant, --variants; without --data the whole "
    "embedded set."
)
FOLD_HELP = "k/n: measure on this fold of --data alone (with --weights)."
POOL_HELP = "Pool the held-out folds of several trainings: their facts files (nail55.json). Repeat it."
WHOLE_HELP = "Without --data: measure on all test images of the embedded set, not on its first dozen."
PART_HELP = "test, validation, held-out (both), train or all (with --weights)."


@guarded
def evaluate(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    weights: Annotated[Path | None, typer.Option("--weights", help=WEIGHTS_HELP)] = None,
    part: Annotated[str, typer.Option("--part", help=PART_HELP)] = "test",
    fold: Annotated[str, typer.Option("--fold", metavar="K/N", help=FOLD_HELP)] = "",
    whole: Annotated[bool, typer.Option("--whole", help=WHOLE_HELP)] = False,
    pool: Annotated[list[Path] | None, typer.Option("--pool", metavar="FACTS", help=POOL_HELP)] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Segment the test images with each variant and compare with their labels.

    Test images are held out of training and of choosing: a split with a validation part keeps that one
    apart, in any other the test part is all that is held out.

    Overlays are written beside the facts, below OUT/facts/accuracy.

    Example: nailtool evaluate --data photos --variants nail55-480

    A file: nailtool evaluate --data hands --weights runs/nail55.partial.safetensors --variants nail55-480

    Folds: nailtool evaluate --pool runs/fold1/nail55.json --pool runs/fold2/nail55.json
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    _check_options(data=data, weights=weights, part=part, fold=fold, whole=whole)
    if pool:
        from nailtool.evaluation import pool_folds

        show_accuracy(terminal, pool_folds(pool))
        return
    if weights is not None:
        from nailtool.evaluation import evaluate_file

        show_accuracy(terminal, [evaluate_file(weights, data, variants, out=out, part=part, fold=fold)])
        return
    from nailcore.facts import AccuracyResult, read_fact
    from nailtool.pipeline import Order, check_data, describe_results, evaluate_accuracy
    from nailtool.rooms import select_names

    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch)
    chosen = select_names("variant", variants, order.registry.variants)
    folder = check_data(data)
    note_data(terminal, folder)
    results = evaluate_accuracy(order, list(chosen), folder, whole=whole)
    done = {r.stage.name for r in results if r.status in ("built", "cached")}
    facts = [
        read_fact(order.plan.accuracy_fact(variant), AccuracyResult)
        for variant in chosen.values()
        if f"accuracy {variant.name}" in done
    ]
    show_accuracy(terminal, facts, stages=describe_results(results))
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)


def _check_options(*, data: Path | None, weights: Path | None, part: str, fold: str, whole: bool) -> None:
    """Refuse what would be passed over in silence: figures of other images than those asked for."""
    from nailcore.errors import NailtoolError

    if weights is None and (fold or part != "test"):
        raise NailtoolError(
            f"--{'fold' if fold else 'part'} measures a file: name it with --weights.",
            hint="Without it, the weights that ship are measured on the test part.",
        )
    if data is not None and whole:
        raise NailtoolError("--whole is about the embedded set, but --data names another one.")


def show_accuracy(
    terminal: Terminal, facts: list[AccuracyResult], *, stages: list[dict[str, Any]] | None = None
) -> None:
    """The tables of accuracy, nails and slices, and the same as JSON."""
    terminal.table(
        "Accuracy on held-out images (95 % intervals over images)",
        ("variant", "mIoU", "nail IoU", "boundary F", "images", "output stride"),
        (
            (
                fact.variant,
                format_interval(fact.miou),
                format_interval(fact.nail_iou),
                format_interval(fact.boundary_f),
                f"{fact.images.count} {'synthetic' if fact.images.synthetic else 'photographs'}",
                str(fact.output_stride),
            )
            for fact in facts
        ),
    )
    terminal.table(
        "Per nail (found: a blob overlaps it with IoU 0.5 or more)",
        ("variant", "nails", "found", "right finger", "named alone", "direction error, median", "p90"),
        (
            (
                fact.variant,
                str(sum(len(image.nails) for image in fact.per_image)),
                _format(fact.nail_recall),
                _format(fact.finger_accuracy),
                _format(fact.finger_accuracy_alone),
                _format(fact.direction_error_median_deg, "°"),
                _format(fact.direction_error_p90_deg, "°"),
            )
            for fact in facts
        ),
    )
    for fact in facts:
        terminal.table(
            f"{fact.variant} by kind of image (skin tone as photographed: exposure counts)",
            ("by", "slice", "images", "nails", "mIoU", "nail IoU", "found"),
            (
                (
                    part.by,
                    part.name,
                    str(part.images),
                    str(part.nails),
                    format_interval(part.miou),
                    format_interval(part.nail_iou),
                    _format(part.nail_recall),
                )
                for part in fact.slices
            ),
        )
    document: dict[str, Any] = {"accuracy": [fact.model_dump(mode="json") for fact in facts]}
    terminal.emit(document if stages is None else {**document, "stages": stages})


def _format(interval: Interval | None, unit: str = "") -> str:
    if interval is None:
        return "–"
    if unit:
        return interval.tell(unit=unit)
    return format_interval(interval)
