"""What the programs that compare choices have in common: data, budget, one bar per training, two files."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.choices import Budget, Choice, render_markdown, run_choices
from benchmark.choices_cost import measure_costs
from nailcore.errors import NailtoolError
from nailcore.storage import write_text

SET_HELP = "KEY=VALUE of a training setting (docs/training.md), such as lr_encoder=1e-4; repeat it."


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with the value as TOML writes it; raises NailtoolError."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = tomllib.loads(f"value {equals} {value}")["value"]
        except ValueError as error:  # TOML's own error is one
            raise NailtoolError(
                f"--set {text}: expected KEY=VALUE as in TOML, such as lr_encoder=1e-4: {error}"
            ) from error
    return found


def compare(
    title: str,
    choices: Sequence[Choice],
    data: Sequence[Path],
    settings: dict[str, Any],
    *,
    seeds: int,
    rounds: int,
    out: Path,
) -> None:
    """Train, measure and print the table; writes ``OUT/choices.json`` and ``OUT/choices.md``.

    The first data set of photographs is what everything is measured on (or the first one of all).
    """
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from nailcore.data.folder import open_dataset
    from nailcore.facts import write_fact
    from nailcore.train import StepReport, TrainConfig

    sources = tuple(open_dataset(folder) for folder in data)
    held_out = next((s for s in sources if not s.card.synthetic), sources[0])
    budget = Budget(sources, held_out, TrainConfig.model_validate(settings), seeds, out)
    console = Console()
    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as progress:

        def show(name: str, report: StepReport) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=report.steps)
            progress.update(tasks[name], completed=report.step)

        result = run_choices(title, choices, budget, partial(measure_costs, rounds=rounds), show)
    write_fact(out / "choices.json", result)
    write_text(out / "choices.md", render_markdown(result))
    console.print(render_markdown(result), markup=False, soft_wrap=True)
