"""The ablation as the front door runs it: check, train every cell, write the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nailcore.facts import write_fact
from nailcore.storage import write_text
from nailtool.training import TrainOrder, check_extra, find_init, make_config, open_sources

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.ablation_facts import AblationReport
    from nailcore.train import StepReport


@dataclass(frozen=True)
class AblationRequest:
    """What is to be compared; ``settings`` are fields of TrainConfig."""

    data: tuple[str, ...]
    init: str | None
    variant: str
    out: Path
    seeds: int
    fold: str
    settings: dict[str, Any]
    phases: tuple[str, ...] = ()  # STEPS:SHARE,SHARE


def run_request(request: AblationRequest, console: Console | None) -> AblationReport:
    """Train and measure every cell; writes ``ablation.json`` and ``ablation.md`` to ``out``.

    Raises:
        MissingToolError, DataError, WeightsError, NailtoolError: as ``nailtool train``.
        BusyError: another command works in ``out``.
    """
    check_extra()
    from benchmark.ablation import LOSSES, NETWORKS, AblationOrder, render_markdown, run_ablation
    from model_zoo import find_variant
    from nailtool.lock import hold_folder

    variant = find_variant(request.variant)
    order = TrainOrder(
        data=request.data,
        depth=variant.encoder_layers,
        init=request.init,
        out=request.out,
        settings=request.settings,
        fold=request.fold,
        phases=request.phases,
    )
    config, init, sources = make_config(order), find_init(request.init), open_sources(order)
    # Photographs say more than rendered hands, where there are any.
    held_out = next((s for s in sources if not s.card.synthetic), sources[0])
    wanted = AblationOrder(variant, tuple(sources), held_out, config, init, request.seeds, request.out)
    total = len(NETWORKS) * len(LOSSES) * request.seeds
    with hold_folder(request.out, files=("ablation.json", "ablation.md")):
        with _Bars(console, total) as bars:
            result = run_ablation(wanted, bars.show)
        write_fact(request.out / "ablation.json", result)
        write_text(request.out / "ablation.md", render_markdown(result))
    return result


class _Bars:
    """One bar per cell being trained."""

    def __init__(self, console: Console | None, cells: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self.cells, self.tasks = cells, dict[str, Any]()

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, name: str, report: StepReport) -> None:
        """One step of one cell."""
        if name not in self.tasks:
            title = f"{name} ({len(self.tasks) + 1} of at most {self.cells})"
            self.tasks[name] = self.progress.add_task(title, total=report.steps)
        self.progress.update(self.tasks[name], completed=report.step)
