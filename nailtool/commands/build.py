"""`nailtool build-variants`: convert the trained weights into every artefact that ships."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    note_data,
    note_warnings,
    show_explanation,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal, format_bytes

if TYPE_CHECKING:
    from nailcore.gate_facts import GateVerdict
    from nailtool.gate_stages import GateOrder
    from nailtool.pipeline import Order
    from nailtool.stage import StageResult
    from nailtool.stages import Unit

GateOption = Annotated[
    bool | None,
    typer.Option(
        "--gate/--no-gate",
        help="Judge every file / none; without it, the quantized ones.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="A,B", help="Time judged files against fp32 there, e.g. cpu."),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        min=0.0,
        help="Nail-IoU points a judged file may lose, at the upper end of the paired 95 % interval.",
    ),
]


@guarded
def build_variants(
    *,
    variants: VariantsOption = None,
    targets: TargetsOption = None,
    recipes: RecipesOption = None,
    data: DataOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    gate: GateOption = None,
    device: DeviceOption = None,
    max_drop: MaxDropOption = None,
    force: ForceOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would run, and why.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Only list variants and artefacts.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert the trained weights into ONNX, CoreML, TF.js and TFLite files, each with a manifest.

    Nothing is rebuilt when nothing changed; an interrupted build resumes where it stopped.

    Quantized files are judged as well: parity in their usual engine, the drop of nail IoU on the held-out
    images of --data, and with --device the speed against fp32. A file that is refused is written all the
    same, labelled. Exit code 1 when a file is not shippable, 3 when a verdict stays open.

    Example: nailtool build-variants --variants nail43-288 --targets onnx,tfjs --explain

    Judged: nailtool build-variants --recipes int8-per-channel --data photos --device cpu
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    began = time.perf_counter()
    registry = load_registry()
    from nailtool.commands.gate_table import decide_exit, show_gates
    from nailtool.gate_stages import add_siblings, read_verdicts
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
    judged = _find_judged(order, units, gate, device, max_drop)
    if judged is not None:
        note_data(terminal, order.data)
    results = build(order, units, judged)
    if explain:
        show_explanation(terminal, results)
        return
    wanted = order.plan.list_stage_units(add_siblings(order.plan, judged.units) if judged else [])
    wanted = list({unit.name: unit for unit in (*wanted, *order.plan.list_stage_units(units))}.values())
    names = {unit.name: unit for unit in wanted}
    converted = [result for result in results if result.stage.name in names]
    done = {result.stage.name for result in results if result.status in ("built", "cached")}
    verdicts = read_verdicts(
        order.plan, [unit for unit in (judged.units if judged else ()) if f"gate {unit.name}" in done]
    )
    _show_results(terminal, names, converted, verdicts, time.perf_counter() - began)
    show_gates(terminal, verdicts)
    note_warnings(terminal, order, units)
    code = show_failures(terminal, results)
    code = decide_exit(terminal, verdicts, code)
    if code:
        raise typer.Exit(code)


def _find_judged(
    order: Order, units: Sequence[Unit], gate: bool | None, device: str | None, max_drop: float | None
) -> GateOrder | None:
    """The files to judge: the quantized ones, with --gate all, with --no-gate none."""
    from nailcore.errors import NailtoolError
    from nailtool.gate_stages import GateOrder
    from nailtool.rooms import select_names

    chosen = [unit for unit in units if gate is not False and (gate or unit.recipe.quantized)]
    if not chosen:
        if device is not None or max_drop is not None:
            raise NailtoolError(
                "--device and --max-drop are about files that are judged, and none of these is.",
                hint="Name a quantized recipe (`nailtool recipes`), or judge float files too with --gate.",
            )
        return None
    devices = () if device is None else tuple(select_names("device", device, order.registry.devices))
    return GateOrder(tuple(chosen), devices, max_drop)


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
    terminal: Terminal,
    by_name: Mapping[str, Unit],
    results: Sequence[StageResult],
    verdicts: Sequence[GateVerdict],
    wall_s: float,
) -> None:
    from nailtool.pipeline import summarise_cost

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
            "not_shippable": [v.artifact.label for v in verdicts if v.decision == "not shippable"],
            "undecided": [v.artifact.label for v in verdicts if v.decision == "undecided"],
            "gates": [verdict.model_dump(mode="json") for verdict in verdicts],
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
