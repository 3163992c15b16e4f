"""Progress of counted work: a rich bar with time left on a terminal, ten lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress


class CountBar:
    """``with CountBar(terminal, "imported") as bar: work(progress=bar)``; called with (done, total)."""

    def __init__(self, terminal: Terminal, verb: str) -> None:
        self.terminal, self.verb = terminal, verb
        self._bar: Progress | None = None
        self._said = 0

    def __enter__(self) -> CountBar:
        console = self.terminal.console()
        if not self.terminal.quiet and console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._bar.add_task(self.verb, total=None)
            self._bar.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif total and done * 10 // total > self._said:
            self._said = done * 10 // total
            self.terminal.note(f"{self.verb} {done} of {total}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
