"""`nailtool evaluate`: how well the weights of each variant segment held-out images."""

from __future__ import annotations

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


@guarded
def evaluate(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Segment the held-out images with each variant and compare with their masks.

    Overlays are written beside the facts, below OUT/facts/accuracy.

    Example: nailtool evaluate --data photos --variants nail55-480
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.facts import AccuracyResult, read_fact
    from nailtool.pipeline import Order, check_data, describe_results, evaluate_accuracy
    from nailtool.rooms import select_names

    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch)
    chosen = select_names("variant", variants, order.registry.variants)
    folder = check_data(data)
    note_data(terminal, folder)
    results = evaluate_accuracy(order, list(chosen), folder)
    done = {r.stage.name for r in results if r.status in ("built", "cached")}
    facts = [
        read_fact(order.plan.accuracy_fact(variant), AccuracyResult)
        for variant in chosen.values()
        if f"accuracy {variant.name}" in done
    ]
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
    terminal.emit(
        {
            "accuracy": [fact.model_dump(mode="json") for fact in facts],
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)
