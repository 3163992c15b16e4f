"""Progress of a run: a live bar on a terminal, one plain line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nailtool.stage import Cost, Stage, Status


class Display(Protocol):
    """A watcher with a beginning and an end."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave a clean terminal behind."""

    def started(self, stage: Stage) -> None:
        """A worker took the stage."""

    def advanced(self, stage: Stage, done: int, total: int) -> None:
        """The stage reported progress."""

    def finished(self, stage: Stage, status: Status, cost: Cost) -> None:
        """The stage ended, or needed no run."""


def make_display(console: Console | None, stages: Sequence[Stage]) -> Display:
    """No console: nothing; a terminal: live bars; anything else: lines."""
    if console is not None and console.is_terminal:
        return LiveDisplay(console, len(stages))
    return LineDisplay(console, len(stages))


class LineDisplay:
    """One line per stage that ran; stages that were up to date are only counted."""

    def __init__(self, console: Console | None, total: int) -> None:
        self.console = console
        self.total = total
        self.done = 0

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clear."""

    def started(self, stage: Stage) -> None:
        """Stages take seconds: their end is news enough."""

    def advanced(self, stage: Stage, done: int, total: int) -> None:
        """Too much for a log."""

    def finished(self, stage: Stage, status: Status, cost: Cost) -> None:
        """Say what ended and what it took."""
        self.done += 1
        if self.console is not None and status != "cached":
            took = f" ({cost.wall_s:.1f} s)" if cost.wall_s else ""
            line = f"[{self.done:>3}/{self.total}] {status} {stage.name}{took}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """An overall bar and one line per running stage; they vanish when the command is done."""

    def __init__(self, console: Console, total: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.overall = self.progress.add_task("stages", total=total)
        self.running: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start the live display."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; the cursor comes back even after Ctrl-C."""
        self.progress.stop()

    def started(self, stage: Stage) -> None:
        """Add the stage's line."""
        self.running[stage.name] = self.progress.add_task(f"  {stage.name}", total=None)

    def advanced(self, stage: Stage, done: int, total: int) -> None:
        """Move the stage's own bar."""
        self.progress.update(self.running[stage.name], completed=done, total=total)

    def finished(self, stage: Stage, status: Status, cost: Cost) -> None:
        """Take the stage's line away, and keep a line for what went wrong."""
        task = self.running.pop(stage.name, None)
        if task is not None:
            self.progress.remove_task(task)
        self.progress.advance(self.overall)
        if status in ("failed", "blocked"):
            self.progress.console.print(f"{status} {stage.name}", style="red", markup=False)
