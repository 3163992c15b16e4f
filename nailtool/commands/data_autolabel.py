"""`nailtool data autolabel`: fingers and directions guessed for nails that have only a mask."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

PYTHON_HELP = "The Python that has mediapipe==0.10.21 (docs/data.md); default: this one."


@guarded
def autolabel(
    folder: Annotated[Path, typer.Argument(help="Data folder with annotations.json.")],
    *,
    python: Annotated[Path | None, typer.Option("--python", metavar="PATH", help=PYTHON_HELP)] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Guess finger and direction of nails by MediaPipe Hands; what people said is never changed.

    Guesses are marked machine-made with a confidence. They are no ground truth: evaluate never counts
    them, and train learns from them only when told to.

    Example: nailtool data autolabel photos --python hands/bin/python
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.autolabel import autolabel_folder
    from nailcore.errors import DataError
    from nailtool.count_bar import CountBar
    from nailtool.lock import hold_folder

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    with hold_folder(folder, files=("annotations.json",)) as state, CountBar(terminal, "looked at") as bar:
        done = autolabel_folder(folder, python or Path(sys.executable), state / "hands.jsonl", progress=bar)
    terminal.table(
        f"Machine-made labels by {done.by}",
        ("photos", "with a hand", "nails", "fingers guessed", "directions guessed", "left alone"),
        [
            tuple(
                str(count)
                for count in (
                    done.photos,
                    done.with_hands,
                    done.nails,
                    done.fingers,
                    done.directions,
                    done.kept,
                )
            )
        ],
    )
    terminal.show("Look at them with `nailtool data show`: a question mark stands at each guess.")
    terminal.emit({"folder": str(folder), **dataclasses.asdict(done)})
