"""`nailtool report`: everything that is stale, then one HTML file about all of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.command_line import shorten_command
from nailtool.commands.options import (
    DataOption,
    JobsOption,
    JsonOption,
    OutOption,
    QuietOption,
    VariantsOption,
    load_registry,
    note_data,
    show_explanation,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT, DEFAULT_REPORTS
from nailtool.terminal import Terminal

ReportsOption = Annotated[Path, typer.Option("--reports-dir", help="Where the HTML file goes.")]


@guarded
def report(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    out: OutOption = DEFAULT_OUT,
    reports_dir: Annotated[
        Path, typer.Option("--reports-dir", help="Where the HTML file goes.")
    ] = DEFAULT_REPORTS,
    jobs: JobsOption = DEFAULT_JOBS,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would run, and why.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build, check, evaluate and time whatever is stale, and write one self-contained HTML file.

    A second run with nothing changed rebuilds and measures nothing.

    Example: nailtool report --data photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    began = time.perf_counter()
    from nailtool.checks import find_failed_parity
    from nailtool.gate_stages import find_judged, read_verdicts
    from nailtool.pipeline import Order, check_data, describe_results, make_report
    from nailtool.rooms import select_names

    folder = check_data(data)
    order = Order(load_registry(), out_dir=out, jobs=jobs, explain=explain, watch=terminal.watch, data=folder)
    chosen = select_names("variant", variants, order.registry.variants)
    note_data(terminal, folder)
    results, path = make_report(order, folder, reports_dir, shorten_command(sys.argv[1:]), chosen)
    if explain:
        show_explanation(terminal, results)
        return
    counts = Counter(result.status for result in results)
    wall_s = time.perf_counter() - began
    written = path.is_file()
    verdicts = find_failed_parity(order.plan, chosen)
    units = order.plan.list_units(chosen.values(), order.registry.targets, order.registry.recipes.values())
    judged = read_verdicts(order.plan, find_judged(order.plan, units))
    refused = [verdict.artifact.label for verdict in judged if verdict.decision == "not shippable"]
    terminal.emit(
        {
            "report": str(path) if written else None,
            "ran": counts["built"],
            "cached": counts["cached"],
            "failed": counts["failed"] + counts["blocked"],
            "failed_parity": verdicts,
            "not_shippable": refused,
            "wall_s": round(wall_s, 3),
            "stages": describe_results(results),
        }
    )
    if counts["cached"] == len(results):
        terminal.show(f"Nothing to do: all {len(results)} stages are up to date ({wall_s:.1f} s).")
    else:
        terminal.show(f"{counts['built']} stages ran, {counts['cached']} were up to date ({wall_s:.0f} s).")
    code = show_failures(terminal, results)
    if verdicts:
        terminal.complain("Parity failed:", f"{', '.join(verdicts)}.", "The report shows output and figure.")
    if refused:
        terminal.note(f"Not shippable: {', '.join(refused)}. The report says why.")
    if written:
        terminal.show(f"Report: {path}")
    if verdicts or code:
        raise typer.Exit(1 if verdicts else code)
