"""`nailtool benchmark`: how long one inference takes, on one device after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import (
    JsonOption,
    OutOption,
    QuietOption,
    RecipesOption,
    VariantsOption,
    find_units,
    load_registry,
    show_failures,
)
from nailtool.defaults import DEFAULT_OUT, DEFAULT_SETTINGS
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.facts import Measurement

ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds.")]


@guarded
def benchmark(
    *,
    device: Annotated[
        str, typer.Option("--device", metavar="A,B", help="Where to measure; see `nailtool devices`.")
    ] = "cpu",
    variants: VariantsOption = None,
    recipes: RecipesOption = None,
    threads: ThreadsOption = DEFAULT_SETTINGS["threads"],
    rounds: RoundsOption = DEFAULT_SETTINGS["rounds"],
    out: OutOption = DEFAULT_OUT,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time built artefacts: warm-up, then rounds interleaved over all of them.

    Always measures anew. CPU-ms are steadier than wall-ms on a busy machine.

    Example: nailtool benchmark --device cpu,chromium --rounds 30
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.facts import Measurement, read_fact
    from nailtool.pipeline import (
        Order,
        describe_results,
        find_built,
        list_device_units,
        measure_latency,
    )
    from nailtool.rooms import select_names

    order = Order(load_registry(), out_dir=out, jobs=1, force=True, watch=terminal.watch)
    devices = select_names("device", device, order.registry.devices)
    units = find_units(order, variants, None, recipes)
    measured: list[Measurement] = []
    results = []
    for name in devices:
        built = find_built(list_device_units(order, name, units))
        results += measure_latency(order, name, built, {"rounds": rounds, "threads": threads})
        if results[-1].status == "built":
            measured += [read_fact(order.plan.latency_fact(name, unit), Measurement) for unit in built]
    _show_table(terminal, measured)
    terminal.emit(
        {
            "latency": [measurement.model_dump(mode="json") for measurement in measured],
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)


def _show_table(terminal: Terminal, measured: Sequence[Measurement]) -> None:
    terminal.table(
        "Latency of one inference, graph only",
        (
            "artefact",
            "device",
            "CPU-ms median",
            "CPU-ms p90",
            "wall-ms median",
            "wall-ms p90",
            "first ms",
            "load ms",
            "note",
        ),
        (
            (
                m.artifact.label,
                m.device,
                f"{m.median_cpu_ms:.1f}",
                f"{m.p90_cpu_ms:.1f}",
                f"{m.median_wall_ms:.1f}",
                f"{m.p90_wall_ms:.1f}",
                f"{m.first_ms:.0f}",
                f"{m.load_ms:.0f}",
                f"not ranked: {'; '.join(m.invalid)}" if m.invalid else "",
            )
            for m in measured
        ),
        right=(
            "CPU-ms median",
            "CPU-ms p90",
            "wall-ms median",
            "wall-ms p90",
            "first ms",
            "load ms",
        ),
    )
    for device in dict.fromkeys(m.device for m in measured):
        first = next(m for m in measured if m.device == device)
        settings = ", ".join(f"{key} {value}" for key, value in first.settings.items())
        terminal.show(f"{device}: {first.runtime}; {first.rounds} rounds; {settings}.")
