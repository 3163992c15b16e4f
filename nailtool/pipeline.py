"""What the commands run: plans stages, holds the output folder, runs what is stale."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nailcore.errors import ArtifactError, DataError, MissingToolError
from nailcore.facts import Skipped, write_fact
from nailcore.variant import Variant
from nailtool.checks import add_goldens, list_checks, plan_checks, plan_conversions, plan_surroundings
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT, DEFAULT_SETTINGS
from nailtool.engine import explain_stages, run_stages
from nailtool.executors import describe_place
from nailtool.gate_stages import GateOrder, add_siblings, find_judged, plan_gates
from nailtool.inputs import DataNode
from nailtool.lock import check_free_space, hold_folder
from nailtool.rooms import Registry
from nailtool.schedule import Watcher
from nailtool.shadow import HOME, ROOMS
from nailtool.stage import Cost, Stage, StageResult, Status
from nailtool.stages import Plan, Unit
from nailtool.unblock import list_made, run_unblocked

REPORT_NAME = "report.html"
EMBEDDED_WORDS = "embedded synthetic hands: rendered, no photographs"


MakeDisplay = Callable[[Sequence[Stage]], AbstractContextManager[Watcher]]


class _Silence:
    """A watcher that tells nobody."""

    def started(self, stage: Stage) -> None:
        """Says nothing."""

    def advanced(self, stage: Stage, done: int, total: int) -> None:
        """Says nothing."""

    def finished(self, stage: Stage, status: Status, cost: Cost) -> None:
        """Says nothing."""


def _silent(_: Sequence[Stage]) -> AbstractContextManager[Watcher]:
    return nullcontext(_Silence())


@dataclass(frozen=True)
class Order:
    """Where and how a command runs."""

    registry: Registry
    out_dir: Path = DEFAULT_OUT
    jobs: int = DEFAULT_JOBS
    force: bool = False
    explain: bool = False
    watch: MakeDisplay = _silent
    data: Path | None = None  # whose training part recipes are calibrated on; None: the embedded set

    @property
    def plan(self) -> Plan:
        """Stages for this registry and folder."""
        return Plan(self.registry, self.out_dir.resolve(), self.data)


def run_plan(order: Order, stages: Sequence[Stage], data: Path | None = None) -> list[StageResult]:
    """Hold the output folder and run (or only explain) the stages.

    Raises:
        BusyError: another command works in the folder.
        MissingToolError: the disk is nearly full.
        DataError: a stage has to read the user's data folder, and it is not in order.
    """
    with _hold(order) as folder:
        return _run_held(order, stages, folder, data)


def _hold(order: Order) -> AbstractContextManager[Path]:
    return hold_folder(order.out_dir.resolve(), variants=order.registry.variants, clear=not order.explain)


def _run_held(order: Order, stages: Sequence[Stage], folder: Path, data: Path | None) -> list[StageResult]:
    if order.explain:
        return explain_stages(stages, folder)

    def before_run(stale: Sequence[Stage]) -> None:
        check_free_space(folder)
        if data is not None and any(isinstance(node, DataNode) for s in stale for node in s.inputs):
            from nailcore.data.folder import open_dataset

            open_dataset(data)

    with order.watch(stages) as watcher:
        return run_stages(
            stages, folder, jobs=order.jobs, watcher=watcher, force=order.force, before_run=before_run
        )


def check_data(data: Path | None) -> Path | None:
    """The data folder as given, if there is one at all; its contents are checked when they are needed."""
    if data is not None and not data.is_dir():
        raise DataError(
            f"{data}: no such folder.",
            hint="A data folder holds images/*.jpg and masks/*.png with equal file stems.",
        )
    return None if data is None else data.resolve()


def describe_data(data: Path | None) -> str:
    """What the images are; synthetic ones are never passed off as photographs."""
    if data is None:
        return EMBEDDED_WORDS
    card: object = None
    with suppress(OSError, ValueError):  # a damaged card is named by whoever opens the folder
        card = json.loads((data / "dataset.json").read_bytes())
    synthetic = isinstance(card, dict) and card.get("synthetic", False)
    return f"{'synthetic images' if synthetic else 'photographs'} of the folder '{data.name}'"


def build_variants(order: Order, units: Sequence[Unit], gate: GateOrder | None = None) -> list[StageResult]:
    """Convert every stale unit, what it needs first; then judge those that ``gate`` names.

    Raises:
        MissingToolError: a device that the gate asks for cannot be used on this machine.
    """
    plan, node = order.plan, order.plan.data_node(order.data)
    wanted = list(units) if gate is None else add_siblings(plan, [*gate.units, *units])
    stages = plan.build_stages(wanted)
    if gate is not None:
        stages += plan_gates(plan, gate, node, _describe_machine(), wanted)
    looks = any(isinstance(entry, DataNode) for stage in stages for entry in stage.inputs)
    first = _data_stages(plan, order.data) if looks else []
    with _hold(order) as folder:
        results = _run_held(order, [*first, *stages], folder, order.data)
        if gate is not None:
            left, good = replace(gate, units=list_made(gate.units, results)), list_made(wanted, results)
            results = run_unblocked(
                results,
                lambda: plan_gates(plan, left, node, _describe_machine(), good),
                lambda chosen: _run_held(order, chosen, folder, None),
            )
    return results


def find_built(units: Sequence[Unit]) -> list[Unit]:
    """Units that have been built (with a manifest beside them).

    Raises:
        ArtifactError: none has.
    """
    built = [unit for unit in units if unit.manifest.exists()]
    if not built:
        folder = units[0].path.parent.parent if units else DEFAULT_OUT
        raise ArtifactError(
            f"{folder}: holds none of the {len(units)} artefacts asked for.",
            hint="Run `nailtool build-variants` first.",
        )
    return built


def check_parity(
    order: Order,
    units: Sequence[Unit],
    data: Path | None,
    engines: str | None = None,
    *,
    goldens: Sequence[Path] = (),
    stages: bool = False,
    ios_dumps: Sequence[Path] = (),
) -> list[StageResult]:
    """Compare built artefacts with the trained network; a fact is written per artefact and engine.

    Args:
        order: where and how.
        units: built artefacts.
        data: folder of photographs; None: the embedded set.
        engines: None for the default ones, ``all``, or names with commas.
        goldens: answers of CoreML that were recorded on a Mac, judged in its place.
        stages: also compare what surrounds the network, and each step of the conversions.
        ios_dumps: recordings of the iOS app, for the former.

    Raises:
        UnknownNameError: none of the units' targets has such an engine.
        ArtifactError: a golden is damaged, or of another file.
    """
    plan = order.plan
    node = plan.data_node(data)
    checks = add_goldens(plan, list_checks(plan, units, engines), goldens)
    planned = plan_checks(plan, checks, node)
    if stages:
        planned += plan_conversions(plan, checks, node)
        planned += plan_surroundings(plan, checks, node, [path.resolve() for path in ios_dumps])
    return run_plan(order, [*_data_stages(plan, data), *planned], data)


def evaluate_accuracy(
    order: Order, variants: Sequence[str], data: Path | None, *, whole: bool = False
) -> list[StageResult]:
    """Evaluate the weights of variants; facts are written per variant.

    ``whole``: without ``data``, on all test images of the embedded set instead of its first dozen.
    """
    plan = order.plan
    node = plan.data_node(data, whole=whole)
    stages = [plan.accuracy_stage(order.registry.variants[name], node) for name in variants]
    first = [plan.embedded_stage(whole=whole)] if data is None else []
    return run_plan(order, [*first, *stages], data)


def measure_latency(
    order: Order, device: str, units: Sequence[Unit], settings: Mapping[str, int]
) -> list[StageResult]:
    """Time built artefacts on one device.

    Raises:
        MissingToolError: the device cannot be used on this machine.
    """
    obstacle = importlib.import_module(order.registry.devices[device]).find_obstacle()
    if obstacle is not None:
        raise MissingToolError(
            f"The device '{device}' cannot be used here: {obstacle.reason}", hint=obstacle.remedy
        )
    return run_plan(order, [order.plan.latency_stage(device, units, settings, _describe_place(order, units))])


def list_device_units(order: Order, device: str, units: Sequence[Unit]) -> list[Unit]:
    """Those of the units that a device can run."""
    kinds = importlib.import_module(order.registry.devices[device]).KINDS
    return [unit for unit in units if unit.kind in kinds]


def make_report(
    order: Order,
    data: Path | None,
    reports_dir: Path,
    command: str,
    variants: Mapping[str, Variant] | None = None,
) -> tuple[list[StageResult], Path]:
    """Run whatever is stale of build, parity, accuracy and latency, then render the report.

    ``variants`` limits what is run (None: all); the report shows all that the folder holds.

    A failed stage leaves a gap in the report, and its failure in the results.
    """
    plan = order.plan
    registry = order.registry
    chosen = registry.variants if variants is None else variants
    out_dir = order.out_dir.resolve()
    units = plan.list_units(chosen.values(), registry.targets, registry.recipes.values())
    # What nobody named is reported when it is there, and not made.
    units = [unit for unit in units if unit.recipe.default or unit.manifest.exists()]
    node = plan.data_node(data)
    obstacles = {
        name: importlib.import_module(module).find_obstacle() for name, module in registry.devices.items()
    }
    devices = [name for name, obstacle in obstacles.items() if obstacle is None]
    stages = [
        *_data_stages(plan, data),
        *plan.build_stages(units),
        *(plan.accuracy_stage(variant, node) for variant in chosen.values()),
        *plan_checks(plan, list_checks(plan, units), node, planned=units),
        *_latency_stages(order, devices, units),
    ]
    judged, machine = GateOrder(find_judged(plan, units), tuple(devices), as_before=True), _describe_machine()
    if judged.units:
        known = {stage.name for stage in stages}
        gates = plan_gates(plan, judged, node, machine, units)
        stages += [stage for stage in gates if stage.name not in known]
    report = reports_dir.resolve() / REPORT_NAME
    context = {
        "command": command,
        "tool_version": _tool_version(),
        "source_sha256": _hash_all_sources(),
        "data": describe_data(data),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with _hold(order) as folder:
        results = _run_held(order, stages, folder, data)
        if not order.explain:
            good = list_made(units, results)
            left = replace(judged, units=find_judged(plan, good))
            results = run_unblocked(
                results,
                lambda: [
                    *_latency_stages(order, devices, good),
                    *plan_gates(plan, left, node, machine, good),
                ],
                lambda chosen: _run_held(order, chosen, folder, None),
            )
            _write_obstacles(out_dir, obstacles)
        # Planned only now: it reads every fact that exists after the stages above.
        last = plan.report_stage(report, node, context)
        waiting = sum(result.status == "would run" for result in results)
        if waiting:
            results.append(StageResult(last, "would run", (f"{waiting} stages before it would run first",)))
        elif node.state() is not None:
            results += _run_held(order, [last], folder, data)
    return results, report


def _latency_stages(order: Order, devices: Sequence[str], units: Sequence[Unit]) -> list[Stage]:
    chosen = {device: list_device_units(order, device, units) for device in devices}
    return [
        order.plan.latency_stage(device, found, DEFAULT_SETTINGS, _describe_place(order, found))
        for device, found in chosen.items()
        if found
    ]


def _data_stages(plan: Plan, data: Path | None) -> list[Stage]:
    return [plan.embedded_stage()] if data is None else []


def _write_obstacles(out_dir: Path, obstacles: Mapping[str, Skipped | None]) -> None:
    for name, obstacle in obstacles.items():
        path = out_dir / "facts" / "skipped" / f"latency-{name}.json"
        if obstacle is not None:
            write_fact(path, obstacle)
        else:
            path.unlink(missing_ok=True)


def _describe_machine() -> dict[str, str]:
    from nailcore.measure import describe_machine

    machine = describe_machine()
    return {"machine": f"{machine.cpu}, {machine.cores} cores"}


def _describe_place(order: Order, units: Sequence[Unit]) -> dict[str, str]:
    """What a latency depends on beside the files: the machine, and what runs them where it is no library."""
    plan, place = order.plan, _describe_machine()
    for kind in dict.fromkeys(unit.kind for unit in units):
        place |= describe_place(plan.find_target(kind), plan.list_engines(kind)[0])
    return place


def _tool_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("nailtool")


def list_sources() -> Iterator[Path]:
    """Every source file of nailtool and its rooms."""
    for room in (*ROOMS, "nailtool"):
        yield from sorted((HOME / room).rglob("*.py"))


def _hash_all_sources() -> str:
    digest = hashlib.sha256()
    for path in list_sources():
        digest.update(path.relative_to(HOME).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def summarise_cost(results: Sequence[StageResult]) -> Cost:
    """CPU and wall seconds summed, memory as the highest of all."""
    return Cost(
        cpu_s=sum(result.cost.cpu_s for result in results),
        wall_s=sum(result.cost.wall_s for result in results),
        peak_rss_bytes=max((result.cost.peak_rss_bytes for result in results), default=0),
    )


def describe_results(results: Sequence[StageResult]) -> list[dict[str, Any]]:
    """Results as plain data for ``--json``."""
    return [
        {
            "stage": result.stage.name,
            "status": result.status,
            "reasons": list(result.reasons),
            "cpu_s": round(result.cost.cpu_s, 3),
            "wall_s": round(result.cost.wall_s, 3),
            "peak_rss_bytes": result.cost.peak_rss_bytes,
            "error": None if result.error is None else str(result.error),
        }
        for result in results
    ]
