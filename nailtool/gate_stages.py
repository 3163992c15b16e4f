"""The stages of the gate: one interleaved latency run per variant and target, and a verdict per file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nailcore.artifact import read_manifest
from nailcore.errors import ArtifactError, MissingToolError
from nailcore.facts import read_fact
from nailcore.gate_facts import GateRules, GateVerdict, Unmeasured
from nailtool.checks import list_checks, plan_checks
from nailtool.executors import describe_place
from nailtool.inputs import DataNode, sources_node, tools_node
from nailtool.nodes import ValueNode
from nailtool.stage import Stage
from nailtool.stages import Plan, Unit

SPEED_ROUNDS = 16  # of an interleaved run that a claim about speed rests on
LIMITS = "benchmark/limits.toml"


@dataclass(frozen=True)
class GateOrder:
    """Which files are judged, and by what."""

    units: tuple[Unit, ...]
    devices: tuple[str, ...] = ()  # where speed is measured
    max_drop_points: float | None = None  # None: what limits.toml says
    as_before: bool = False  # a file that was judged by another limit is judged by it again
    rounds: int = SPEED_ROUNDS


def gate_fact(plan: Plan, unit: Unit) -> Path:
    """Where the verdict about a unit is written."""
    return plan.out_dir / "facts" / "gate" / f"{unit.stem}.json"


def speed_fact(plan: Plan, device: str, unit: Unit) -> Path:
    """Where the interleaved run of a unit's variant and target on a device is written."""
    return plan.out_dir / "facts" / "speed" / device / f"{unit.variant.name}.{unit.kind}.json"


def add_siblings(plan: Plan, units: Sequence[Unit]) -> list[Unit]:
    """The units, and the fp32 files that size and speed are compared with, each once, fp32 first."""
    found: dict[str, Unit] = {}
    for unit in units:
        sibling = plan.find_sibling(unit)
        if sibling is not None and unit.kind in sibling.recipe.targets:
            found.setdefault(sibling.name, sibling)
        found.setdefault(unit.name, unit)
    return list(found.values())


def plan_gates(
    plan: Plan, order: GateOrder, data: DataNode, machine: Mapping[str, str], planned: Sequence[Unit]
) -> list[Stage]:
    """Parity by the usual engine, latency where a device was asked for, and a verdict for each unit.

    Raises:
        MissingToolError: a device that was asked for cannot be used on this machine.
        NailtoolError: the limit makes no sense.
    """
    from benchmark.gate_rules import load_rules

    kinds = {name: _open_device(plan, name) for name in order.devices}
    usual_rules = load_rules(order.max_drop_points)
    rules = {
        unit.name: (_find_earlier_rules(plan, unit, usual_rules) if order.as_before else usual_rules)
        for unit in order.units
    }
    usual = [
        check
        for check in list_checks(plan, order.units, "all")
        if check.engine == plan.list_engines(check.unit.kind)[0]
    ]
    stages = plan_checks(plan, usual, data, planned=planned)
    engines = {check.unit.name: check.engine.name for check in usual}
    runs: dict[Path, Stage] = {}
    for unit in order.units:
        for device in order.devices:
            run = speed_fact(plan, device, unit)
            if unit.kind in kinds[device] and plan.find_sibling(unit) is not None and run not in runs:
                peers = [u for u in order.units if (u.variant, u.kind) == (unit.variant, unit.kind)]
                runs[run] = speed_stage(plan, device, add_siblings(plan, peers), order.rounds, machine)
    stages += runs.values()
    for unit in order.units:
        timed = {device: speed_fact(plan, device, unit) for device in order.devices}
        stages.append(
            gate_stage(
                plan,
                unit,
                parity=plan.parity_fact(unit, engines[unit.name]),
                runs=[run for run in timed.values() if run in runs],
                unmeasured=[
                    _explain(device, kinds[device]) for device, run in timed.items() if run not in runs
                ],
                rules=rules[unit.name],
            )
        )
    return stages


def _find_earlier_rules(plan: Plan, unit: Unit, usual: GateRules) -> GateRules:
    from benchmark.gate_rules import load_rules

    with suppress(ArtifactError):
        limit = read_fact(gate_fact(plan, unit), GateVerdict).rules.max_drop_points
        return usual if limit == usual.max_drop_points else load_rules(limit)
    return usual


def find_judged(plan: Plan, units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units a report judges: the quantized ones, and what was judged before."""
    return tuple(unit for unit in units if unit.recipe.quantized or gate_fact(plan, unit).is_file())


def list_free_devices(plan: Plan, units: Sequence[Unit]) -> tuple[str, ...]:
    """The devices that can be used here and run one of the units."""
    kinds = {unit.kind for unit in units}
    modules = {name: importlib.import_module(module) for name, module in plan.registry.devices.items()}
    return tuple(
        name for name, module in modules.items() if kinds & set(module.KINDS) and not module.find_obstacle()
    )


def _open_device(plan: Plan, name: str) -> tuple[str, ...]:
    """The kinds of file a device runs; raises MissingToolError where it is not to be had."""
    module = importlib.import_module(plan.registry.devices[name])
    obstacle = module.find_obstacle()
    if obstacle is not None:
        raise MissingToolError(
            f"The device '{name}' cannot be used here: {obstacle.reason}", hint=obstacle.remedy
        )
    return tuple(module.KINDS)


def _explain(device: str, kinds: Sequence[str]) -> Unmeasured:
    return Unmeasured(device=device, reason=f"it runs {' and '.join(kinds)} files only", asked_for=False)


def speed_stage(
    plan: Plan, device: str, units: Sequence[Unit], rounds: int, machine: Mapping[str, str]
) -> Stage:
    """Times the files of one variant and target in one run, their rounds interleaved: they can be paired."""
    first, module = units[0], plan.registry.devices[device]
    target, fact = plan.find_target(first.kind), speed_fact(plan, device, first)
    place = {**machine, **describe_place(target, plan.list_engines(first.kind)[0])}
    return Stage(
        name=f"speed {first.variant.name} {first.kind} {device}",
        family=f"device {device}",
        job="nailtool.jobs:compare_speed",
        arguments={
            "device": module,
            "manifests": [unit.manifest for unit in units],
            "rounds": rounds,
            "fact": fact,
        },
        inputs=(
            *(plan.file_node(unit.path) for unit in units),
            *(plan.file_node(unit.manifest) for unit in units),
            *(ValueNode(key, value) for key, value in place.items()),
            ValueNode("rounds", str(rounds)),
            tools_node(*target.RUNTIME_TOOLS),
            sources_node([module, plan.registry.targets[first.kind]], target.RESOURCES),
        ),
        products=(plan.file_node(fact),),
        exclusive=True,
    )


def gate_stage(
    plan: Plan,
    unit: Unit,
    *,
    parity: Path,
    runs: Sequence[Path],
    unmeasured: Sequence[Unmeasured],
    rules: GateRules,
) -> Stage:
    """Judges one file from its facts."""
    sibling, fact = plan.find_sibling(unit), gate_fact(plan, unit)
    fp32 = sibling.manifest if sibling is not None and unit.kind in sibling.recipe.targets else None
    manifests = [unit.manifest, *([fp32] if fp32 else [])]
    lacking = "; ".join(f"{one.device}: {one.reason}" for one in unmeasured) or "nothing"
    return Stage(
        name=f"gate {unit.name}",
        family="light",
        job="nailtool.jobs:judge_gate",
        arguments={
            "manifest": unit.manifest,
            "fp32": fp32,
            "parity": parity,
            "runs": list(runs),
            "unmeasured": list(unmeasured),
            "rules": rules,
            "fact": fact,
        },
        inputs=(
            *map(plan.file_node, manifests),
            plan.file_node(parity),
            *map(plan.file_node, runs),
            ValueNode("rules", rules.model_dump_json()),
            ValueNode("not measured", lacking),
            sources_node(["benchmark.gate"]),
        ),
        products=(plan.file_node(fact),),
    )


def read_verdicts(plan: Plan, units: Sequence[Unit]) -> list[GateVerdict]:
    """The verdicts about the files that lie there now; missing, damaged and outdated ones are left out."""
    found = []
    for unit in units:
        with suppress(ArtifactError):
            verdict = read_fact(gate_fact(plan, unit), GateVerdict)
            if verdict.artifact.sha256 == read_manifest(unit.manifest).sha256:
                found.append(verdict)
    return found
