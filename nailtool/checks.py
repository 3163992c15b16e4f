"""Which engine executes which artefact, and what their verdicts say as they stand in the output folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nailcore.artifact import read_manifest
from nailcore.errors import ArtifactError
from nailcore.facts import ParityResult, read_fact
from nailcore.runtime import Engine
from nailcore.variant import Variant
from nailtool.executors import describe_place
from nailtool.inputs import DataNode
from nailtool.rooms import select_names
from nailtool.stage import Stage
from nailtool.stages import Plan, Unit


@dataclass(frozen=True)
class Check:
    """One artefact to be executed by one engine."""

    unit: Unit
    engine: Engine

    @property
    def stage_name(self) -> str:
        """The stage that does it."""
        return f"parity {self.unit.name} {self.engine.name}"


def list_checks(plan: Plan, units: Sequence[Unit], engines: str | None = None) -> list[Check]:
    """Which engines execute which units: the default ones, ``all``, or those named with commas.

    Raises:
        UnknownNameError: none of the units' targets has such an engine.
        NailtoolError: no name was given.
    """
    known = {engine.name: engine for unit in units for engine in plan.list_engines(unit.kind)}
    if engines is None:
        wanted = {name for name, engine in known.items() if engine.default}
    elif engines.strip() == "all":
        wanted = set(known)
    else:
        wanted = set(select_names("engine", engines, known))
    return [
        Check(unit, engine)
        # Variants together: a worker keeps the reference network of the last one.
        for unit in sorted(units, key=lambda unit: unit.variant.name)
        for engine in plan.list_engines(unit.kind)
        if engine.name in wanted
    ]


def plan_checks(
    plan: Plan, checks: Sequence[Check], data: DataNode, *, planned: Sequence[Unit] = ()
) -> list[Stage]:
    """A stage per check. ``planned`` are units that the same run builds, so they may not be there yet."""
    coming = {unit.name for unit in planned}
    stages = []
    for check in checks:
        sibling = plan.find_sibling(check.unit)
        there = sibling is not None and (sibling.name in coming or sibling.manifest.exists())
        place = describe_place(plan.find_target(check.unit.kind), check.engine)
        stages.append(plan.parity_stage(check.unit, data, check.engine, place, sibling if there else None))
    return stages


def read_parity(plan: Plan, checks: Sequence[Check]) -> list[ParityResult]:
    """The facts of checks as they stand in the output folder; what is missing or damaged is left out."""
    facts = []
    for check in checks:
        with suppress(ArtifactError):
            facts.append(read_fact(plan.parity_fact(check.unit, check.engine.name), ParityResult))
    return facts


def find_failed_parity(plan: Plan, variants: Mapping[str, Variant] | None = None) -> list[str]:
    """Labels of artefacts whose parity, as it stands in the output folder, is negative in any engine.

    Only verdicts about the very files that lie there count, and only those on the images that the
    default engines were last shown. What cannot be read has no verdict: the stages that should have
    written it say what is wrong.
    """
    registry = plan.registry
    chosen = registry.variants if variants is None else variants
    units = plan.list_units(chosen.values(), registry.targets, registry.recipes.values())
    shown = {fact.images.sha256 for fact in read_parity(plan, list_checks(plan, units))}
    failed: list[str] = []
    for check in list_checks(plan, units, "all"):
        for fact in read_parity(plan, [check]):
            with suppress(ArtifactError):
                current = fact.artifact.sha256 == read_manifest(check.unit.manifest).sha256
                seen = bool(shown & {fact.images.sha256, fact.images.part_of_sha256})
                if fact.status == "failed" and current and seen:
                    failed.append(fact.artifact.label)
    return list(dict.fromkeys(failed))
