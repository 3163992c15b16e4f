"""A second pass: one artefact that cannot be made must not keep the others from being timed and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nailtool.stage import Stage, StageResult
from nailtool.stages import Unit


def _list_lost(results: Iterable[StageResult]) -> list[Stage]:
    """The stages whose products were not made."""
    return [result.stage for result in results if result.status in ("failed", "blocked")]


def list_made(units: Iterable[Unit], results: Sequence[StageResult]) -> tuple[Unit, ...]:
    """The units that no failure kept from being built, in their order."""
    names = {stage.name for stage in _list_lost(results)}
    return tuple(unit for unit in units if unit.name not in names)


def run_unblocked(
    results: list[StageResult],
    plan_again: Callable[[], Sequence[Stage]],
    run: Callable[[list[Stage]], list[StageResult]],
) -> list[StageResult]:
    """Run what was blocked and, planned anew without the artefacts that failed, needs nothing of theirs.

    Args:
        results: of the first pass.
        plan_again: makes stages for the units that were made, each after those it needs.
        run: runs stages.

    Returns:
        The results, those of the second pass in place of the blocked ones.
    """
    blocked = {result.stage.name for result in results if result.status == "blocked"}
    if not blocked:
        return results
    broken = {product.signature for stage in _list_lost(results) for product in stage.products}
    possible = []
    for stage in plan_again():
        if stage.name in blocked and not any(node.signature in broken for node in stage.inputs):
            possible.append(stage)
            broken -= {product.signature for product in stage.products}
    names = {stage.name for stage in possible}
    kept = [result for result in results if result.stage.name not in names]
    return kept + run(possible) if possible else results
