"""What a training shows while it runs: a progress bar, and TensorBoard logs where they are asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nailcore.errors import MissingToolError

if TYPE_CHECKING:
    from rich.console import Console

    from nailcore.train import StepReport


class TrainingBar:
    """A rich bar with loss, speed and time left; nothing without a console."""

    def __init__(self, console: Console | None, name: str, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn(f"{name} {{task.fields[figures]}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self.task = self.progress.add_task(name, total=steps, figures="")
        self.losses: list[float] = []

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, report: StepReport) -> None:
        """One step later."""
        parts = (report.loss, report.fgbg, report.finger, report.direction)
        self.losses = [
            new if not self.losses else 0.95 * old + 0.05 * new
            for old, new in zip(self.losses or parts, parts, strict=True)
        ]
        total, fgbg, finger, direction = self.losses
        figures = (
            f"loss {total:.3f} = fgbg {fgbg:.3f} + finger {finger:.3f} + direction {direction:.3f}, "
            f"{report.images_per_s:.1f} images/s"
        )
        self.progress.update(self.task, completed=report.step, figures=figures)


class TrainingBoard:
    """TensorBoard logs below ``out/tensorboard``, or nothing without ``out``."""

    def __init__(self, out: Path | None) -> None:
        self.writer: Any = None
        if out is not None:
            # TensorBoard loads all of TensorFlow unless this module of its own build exists.
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingToolError(
                    "--tensorboard needs the package tensorboard, which is not installed.",
                    hint='Install the extra: pip install -e ".[train]" in the source folder.',
                ) from error
            self.writer = SummaryWriter(str(out / "tensorboard"))

    def __enter__(self) -> TrainingBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def show(self, report: StepReport) -> None:
        """Write one step's figures."""
        if self.writer is None:
            return
        figures = {
            "loss/total": report.loss,
            "loss/fgbg": report.fgbg,
            "loss/finger": report.finger,
            "loss/direction": report.direction,
            "learning rate": report.learning_rate,
            "speed/images per s": report.images_per_s,
            "speed/wait for the loader s": report.loader_s,
        }
        for name, value in figures.items():
            self.writer.add_scalar(name, value, report.step)
