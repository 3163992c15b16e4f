"""What a command says: progress and notes to stderr, results to stdout, or one JSON document there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from nailcore.facts import Interval
    from nailtool.progress import Display
    from nailtool.stage import Stage

_PIPE_WIDTH = 140  # columns of a table that goes into a file or a pipe


class Terminal:
    """Output of one command. ``--json`` leaves stdout to one document, ``--quiet`` to nothing at all."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json

    def _console(self, *, stderr: bool) -> Console:
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
        return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)

    def note(self, text: str) -> None:
        """One line about what happens, for people."""
        if not self.quiet:
            self._console(stderr=True).print(text, markup=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """One line of result."""
        if not self.quiet and not self.as_json:
            self._console(stderr=False).print(text, markup=False, soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
    ) -> None:
        """A table of results; columns named in ``right`` are aligned right."""
        if self.quiet or self.as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        self._console(stderr=False).print(table)

    def emit(self, document: dict[str, Any]) -> None:
        """The one document of ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def complain(self, title: str, message: str, hint: str = "") -> None:
        """An error, always shown."""
        console = self._console(stderr=True)
        console.print(title, style="bold red", end=" ")
        console.print(message, markup=False, soft_wrap=True)
        if hint:
            console.print(f"→ {hint}", style="yellow", markup=False, soft_wrap=True)

    def console(self) -> Console:
        """Where progress goes."""
        return self._console(stderr=True)

    def watch(self, stages: Sequence[Stage]) -> Display:
        """A progress display that suits the terminal."""
        from nailtool.progress import make_display

        return make_display(None if self.quiet else self._console(stderr=True), stages)


def _style(cell: str) -> str:
    word = cell.partition(" ")[0].rstrip(":")
    if word in ("failed", "missing", "blocked", "no") or cell.startswith("not shippable"):
        return "red"
    if word in ("passed", "ok", "yes", "shippable"):
        return "green"
    return "yellow" if cell.startswith(("not executed", "skipped", "undecided")) else ""


def format_interval(interval: Interval) -> str:
    """A figure of 0..1 with its 95 % interval, as every table of accuracy prints it."""
    return interval.tell(3)


def format_bytes(count: int) -> str:
    """Megabytes with one decimal, as used for model files (1 MB = 10^6 bytes)."""
    return f"{count / 1e6:.1f} MB"
