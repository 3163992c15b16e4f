"""`nailtool build-variants`: convert the trained weights into every artefact that ships."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    RecipesOption,
    TargetsOption,
    VariantsOption,
    find_units,
    load_registry,
    show_explanation,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal, format_bytes

if TYPE_CHECKING:
    from nailtool.stage import StageResult
    from nailtool.stages import Unit


@guarded
def build_variants(
    *,
    variants: VariantsOption = None,
    targets: TargetsOption = None,
    recipes: RecipesOption = None,
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would run, and why.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only list variants and artefacts.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert the trained weights into ONNX, CoreML and TF.js files, each with a manifest.

    Nothing is rebuilt when nothing changed; an interrupted build resumes where it stopped.

    Example: nailtool build-variants --variants nail43-288 --targets onnx,tfjs --explain
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    began = time.perf_counter()
    registry = load_registry()
    from nailtool.pipeline import Order, check_data
    from nailtool.pipeline import build_variants as build

    order = Order(
        registry,
        out_dir=out,
        jobs=jobs,
        force=force,
        explain=explain,
        watch=terminal.watch,
        data=check_data(data),
    )
    units = find_units(order, variants, targets, recipes)
    if list_only:
        _show_list(terminal, units)
        return
    results = build(order, units)
    if explain:
        show_explanation(terminal, results)
        return
    wanted = order.plan.list_stage_units(units)
    names = {unit.name for unit in wanted}
    converted = [result for result in results if result.stage.name in names]
    _show_results(terminal, wanted, converted, time.perf_counter() - began)
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)


def _show_list(terminal: Terminal, units: Sequence[Unit]) -> None:
    variants = {unit.variant.name: unit.variant for unit in units}
    terminal.table(
        "Variants",
        ("variant", "layers", "input px", "artefacts"),
        (
            (
                name,
                str(variant.encoder_layers),
                f"{variant.width_px}×{variant.height_px}",
                ", ".join(f"{u.kind} {u.recipe.name}" for u in units if u.variant.name == name),
            )
            for name, variant in variants.items()
        ),
        right=("layers",),
    )
    terminal.emit(
        {
            "variants": [variant.model_dump(mode="json") for variant in variants.values()],
            "artifacts": [
                {"variant": u.variant.name, "kind": u.kind, "recipe": u.recipe.name, "path": str(u.path)}
                for u in units
            ],
        }
    )


def _show_results(
    terminal: Terminal, units: Sequence[Unit], results: Sequence[StageResult], wall_s: float
) -> None:
    from nailtool.pipeline import summarise_cost

    by_name = {unit.name: unit for unit in units}
    built = [result for result in results if result.status != "cached"]
    total = summarise_cost(built)
    entries = [_describe(by_name[result.stage.name], result) for result in results]
    sizes = sum(entry["size_bytes"] or 0 for entry in entries)
    terminal.emit(
        {
            "artifacts": entries,
            "built": sum(result.status == "built" for result in results),
            "cached": len(results) - len(built),
            "failed": sum(result.status in ("failed", "blocked") for result in results),
            "size_bytes": sizes,
            "cpu_s": round(total.cpu_s, 3),
            "wall_s": round(wall_s, 3),
            "peak_rss_bytes": total.peak_rss_bytes,
        }
    )
    if not built:
        terminal.show(
            f"Nothing to do: {len(results)} artefacts are up to date "
            f"({format_bytes(sizes)}; checked in {wall_s:.1f} s)."
        )
        return
    terminal.table(
        "Artefacts",
        ("artefact", "size", "CPU-s", "wall-s", "peak memory", "state", "why"),
        (_row(result, entry) for result, entry in zip(results, entries, strict=True)),
        right=("size", "CPU-s", "wall-s", "peak memory"),
    )
    terminal.show(
        f"{len(built)} of {len(results)} artefacts were stale; {format_bytes(sizes)} in all; "
        f"{total.cpu_s:.1f} CPU-s, {wall_s:.1f} s wall, at most {format_bytes(total.peak_rss_bytes)} "
        "per process."
    )


def _describe(unit: Unit, result: StageResult) -> dict[str, Any]:
    from nailcore.artifact import read_manifest
    from nailtool.pipeline import describe_results

    entry = describe_results([result])[0]
    artifact = read_manifest(unit.manifest) if result.status in ("built", "cached") else None
    return entry | {
        "variant": unit.variant.name,
        "kind": unit.kind,
        "recipe": unit.recipe.name,
        "path": str(unit.path),
        "sha256": artifact.sha256 if artifact else None,
        "size_bytes": artifact.size_bytes if artifact else None,
    }


def _row(result: StageResult, entry: dict[str, Any]) -> tuple[str, ...]:
    size = "–" if entry["size_bytes"] is None else format_bytes(entry["size_bytes"])
    cost = result.cost
    figures = (
        (f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", format_bytes(cost.peak_rss_bytes))
        if result.status == "built"
        else ("–", "–", "–")
    )
    return (result.stage.name, size, *figures, result.status, "; ".join(result.reasons[:3]))
