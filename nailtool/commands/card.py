"""`nailtool card`: one page on how weights were trained and chosen, from the facts of their training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

FOLDER_HELP = (
    "The --out of `nailtool retrain`; below it ablation/, decoder/ and encoders/, where these were measured."
)


@guarded
def card(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=FOLDER_HELP)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Copy the facts here too, and write the card beside them.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What was trained; the folder's name by default.")] = "",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write README.md from retraining, cross-validation, ablations and comparisons in one folder.

    What was not measured is listed with the command that measures it.

    Example: nailtool card runs/nail55 --out model_zoo/evidence/nail55
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.family_card import write_family

    written = write_family(folder, out or folder, name or folder.resolve().name)
    for path in written:
        terminal.show(f"Written: {path}")
    terminal.emit({"written": [str(path) for path in written]})
