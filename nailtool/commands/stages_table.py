"""What `parity-check --stages` says of the steps before and after the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.divergence_facts import ConversionStages
    from nailcore.facts import PrePostResult, StageParity

NEGLIGIBLE = 1e-6  # of any figure: rounding of float64


def show_conversions(terminal: Terminal, results: Sequence[ConversionStages]) -> None:
    """One table per file: what each step of its conversion changes by itself."""
    for result in results:
        terminal.table(
            f"Step by step to {result.artifact.label}, on {result.images.count} images",
            ("from", "to", "flip ‰", "mask IoU", "max-abs", "share"),
            [
                (
                    pair.before,
                    pair.after,
                    f"{pair.flipped_permille:.3f}",
                    f"{pair.mask_iou:.4f}",
                    f"{max((output.max_abs for output in pair.outputs), default=0.0):.1e}",
                    f"{100 * pair.share:.0f} %" + (" ←" if pair.largest else ""),
                )
                for pair in result.pairs
            ],
            right=("flip ‰", "mask IoU", "max-abs", "share"),
        )
    if results:
        terminal.show("share: of the squared error that fgbg has at the end; ← where most of it arises.")


def show_surroundings(terminal: Terminal, results: Sequence[PrePostResult]) -> None:
    """One table per variant."""
    for result in results:
        terminal.table(
            f"Before and after the network, {result.variant}",
            ("stage", "implementation", "verdict", "figures"),
            map(_row, result.stages),
        )
        for reason in dict.fromkeys(stage.detail for stage in result.stages if stage.passed is None):
            terminal.show(f"not measured: {reason.removeprefix('Not measured here: ')}")


def _row(stage: StageParity) -> tuple[str, ...]:
    verdict = "passed" if stage.passed else "failed"
    if stage.passed is None:
        verdict = "not measured"
    elif not stage.judged:
        verdict = "for comparison"
    # A dozen figures, most of them nought: what is not equal is told, all of them are in --json.
    differing = {name: value for name, value in stage.figures.items() if abs(value) > NEGLIGIBLE}
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in differing.items())
    said = figures or ("equal" if stage.figures else "")
    return stage.stage, f"{stage.implementation}, {stage.engine}", verdict, said


def complain_of_surroundings(terminal: Terminal, results: Sequence[PrePostResult]) -> bool:
    """Name each implementation of ours that differs; True when there is one."""
    failed = [
        (result, stage)
        for result in results
        for stage in result.stages
        if stage.judged and stage.passed is False
    ]
    for result, stage in failed:
        cause = f"{stage.cause}: " if stage.cause else ""
        terminal.complain(
            f"{stage.stage} of {result.variant} failed in {stage.engine}:",
            f"{stage.implementation}: {cause}{stage.detail}",
        )
    return bool(failed)
