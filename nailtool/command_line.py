"""The command as typed, for reports and model cards: folders of the user's machine reduced to their names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

_PATH_OPTIONS = ("--data", "--init", "--out", "--reports-dir")
_LOOKS_LIKE_A_PATH = re.compile(r"[/\\]|^~")


def shorten_path(path: str | Path) -> str:
    """The last name of a path; of ``.`` and the like, the name of the folder it stands for."""
    text = str(path).rstrip("/\\")
    last = re.split(r"[/\\]", text)[-1]
    return last if last not in ("", ".", "..", "~") else Path(path).expanduser().resolve().name


def shorten_command(arguments: Sequence[str]) -> str:
    """``nailtool`` and its arguments as one line for a shell, without any folder above the last name."""
    parts = ["nailtool"]
    for argument in arguments:
        option, sign, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        named = option in _PATH_OPTIONS or (not sign and parts[-1] in _PATH_OPTIONS)
        if value and (named or _LOOKS_LIKE_A_PATH.search(value)):
            value = shorten_path(value)
        parts.append(f"{option}{sign}{value}")
    return shlex.join(parts)
