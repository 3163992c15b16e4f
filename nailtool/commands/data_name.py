"""`nailtool data name`: fingers and directions that a person names by eye, and guesses found right."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

FROM_HELP = "Text with a photo a line, or - for standard input."


@guarded
def name(
    folder: Annotated[Path, typer.Argument(help="Data folder with annotations.json.")],
    *,
    source: Annotated[Path, typer.Option("--from", metavar="FILE", help=FROM_HELP)],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put fingers and directions named by eye into a data folder, and confirm what a machine guessed.

    Each line is a photo and its nails, numbered as `data show --numbers` draws them: finger (LT left thumb,
    LI, LM, LR, LP, RT .. RP, ? unknown) and the direction of the tip in degrees clockwise from upwards.
    `3=ok` says that a guess is right. Either all lines are taken over or none.

    Example: echo "hand.jpg 1=LI@10 2=LM@5 3=?@350 4=ok" | nailtool data name photos --from -
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.by_eye import name_nails
    from nailcore.errors import DataError
    from nailtool.lock import hold_folder

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    try:
        text = sys.stdin.read() if str(source) == "-" else source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"{source}: cannot be read: {why}.") from error
    with hold_folder(folder, files=("annotations.json",)):
        named = name_nails(folder, text, "standard input" if str(source) == "-" else str(source))
    terminal.show(
        f"{named.photos} photos: {named.fingers} fingers, {named.directions} directions, "
        f"{named.confirmed} guesses confirmed, {named.unknown} labels taken out as unknown."
    )
    terminal.show("Look at them with `nailtool data show`, and let `nailtool data check` look too.")
    terminal.emit({"folder": str(folder), **dataclasses.asdict(named)})
