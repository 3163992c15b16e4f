"""Which engine executes which artefact, and what their verdicts say as they stand in the output folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nailcore.artifact import read_manifest
from nailcore.divergence_facts import ConversionStages
from nailcore.errors import ArtifactError
from nailcore.facts import ParityResult, PrePostResult, read_fact
from nailcore.runtime import Engine
from nailcore.variant import Variant
from nailtool.executors import describe_place
from nailtool.inputs import DataNode
from nailtool.parity_stages import (
    conversion_fact,
    conversion_stage,
    parity_stage,
    prepost_fact,
    prepost_stage,
)
from nailtool.rooms import select_names
from nailtool.stage import Stage
from nailtool.stages import Plan, Unit

CORE_ML = "coreml"  # the engine whose answers can be recorded


@dataclass(frozen=True)
class Check:
    """One artefact to be executed by one engine."""

    unit: Unit
    engine: Engine
    golden: Path | None = None  # what the engine answered on another machine

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
        place = {} if check.golden else describe_place(plan.find_target(check.unit.kind), check.engine)
        stages.append(
            parity_stage(
                plan,
                check.unit,
                data,
                check.engine,
                place,
                sibling=sibling if there else None,
                golden=check.golden,
            )
        )
    return stages


def add_goldens(plan: Plan, checks: Sequence[Check], goldens: Sequence[Path]) -> list[Check]:
    """Checks with recorded answers in the place of the engine that gave them.

    Raises:
        ArtifactError: a golden is missing or damaged, or was recorded from none of the checked files.
    """
    from benchmark.coreml_golden import read_card

    units = {check.unit.name: check.unit for check in checks}
    recorded: dict[tuple[str, str], Check] = {}
    for golden in goldens:
        ref = read_card(golden).artifact
        unit = units.get(ref.label)
        if unit is None or read_manifest(unit.manifest).sha256 != ref.sha256:
            raise ArtifactError(
                f"{golden}: recorded from {ref.label} with SHA-256 {ref.sha256[:12]}…, which is none of the "
                "files that are checked.",
                hint="Check the very file it was recorded from, or record it again on a Mac.",
            )
        engine = next(engine for engine in plan.list_engines(unit.kind) if engine.name == CORE_ML)
        recorded[unit.name, engine.name] = Check(unit, engine, golden.resolve())
    kept = [check for check in checks if (check.unit.name, check.engine.name) not in recorded]
    return [*kept, *recorded.values()]


def plan_surroundings(
    plan: Plan, checks: Sequence[Check], data: DataNode, ios_dumps: Sequence[Path]
) -> list[Stage]:
    """A stage per variant for what surrounds its network: in the browsers of its checks, and its packages."""
    stages = []
    variants = {check.unit.variant.name: check.unit.variant for check in checks}
    for variant in variants.values():
        own = [check for check in checks if check.unit.variant == variant]
        places: dict[str, str] = {}
        browsers: list[str] = []
        for check in own:
            found = describe_place(plan.find_target(check.unit.kind), check.engine)
            browser = check.engine.name.partition("-")[0]
            if "browser" in found and browser not in browsers:
                browsers.append(browser)
                places |= {f"{browser}'s {key}": value for key, value in found.items()}
        packages = {check.unit.name: check.unit for check in own if check.unit.kind == CORE_ML}
        if browsers or packages or ios_dumps:
            stages.append(
                prepost_stage(
                    plan,
                    variant,
                    data,
                    browsers=browsers,
                    place=places,
                    packages=list(packages.values()),
                    ios_dumps=ios_dumps,
                )
            )
    return stages


def plan_conversions(plan: Plan, checks: Sequence[Check], data: DataNode) -> list[Stage]:
    """A stage per unit whose conversion can be taken apart; that to TF.js ends in a browser."""
    from benchmark.conversion_stages import CHAINS

    units = {check.unit.name: check.unit for check in checks if check.unit.kind in CHAINS}
    stages = []
    for unit in units.values():
        place = describe_place(plan.find_target(unit.kind), plan.list_engines(unit.kind)[0])
        stages.append(conversion_stage(plan, unit, data, place))
    return stages


def read_conversions(plan: Plan, checks: Sequence[Check]) -> list[ConversionStages]:
    """The facts of the conversions of some checks; missing ones are left out."""
    facts = []
    for unit in {check.unit.name: check.unit for check in checks}.values():
        with suppress(ArtifactError):
            facts.append(read_fact(conversion_fact(plan, unit), ConversionStages))
    return facts


def read_surroundings(plan: Plan, checks: Sequence[Check]) -> list[PrePostResult]:
    """The facts of what surrounds the networks of some checks; missing ones are left out."""
    facts = []
    for variant in {check.unit.variant.name: check.unit.variant for check in checks}.values():
        with suppress(ArtifactError):
            facts.append(read_fact(prepost_fact(plan, variant), PrePostResult))
    return facts


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
