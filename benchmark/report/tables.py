"""Join the facts of a report by variant and file: the rows that tables, plots and verdict share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.report.bundle import ReportInput
from benchmark.report.lineage import find_weights_sha256, index_by_file, read_variant
from nailcore.artifact import Artifact, BrokenParent
from nailcore.facts import AccuracyResult, Check, ImageSet, Limits, Machine, Measurement, ParityResult
from nailcore.gate_facts import GateVerdict
from nailcore.variant import Variant

ParityState = Literal["passed", "failed", "not executed", "not checked"]


@dataclass(frozen=True)
class FileRow:
    """One artefact with everything known about it."""

    artifact: Artifact
    parities: tuple[ParityResult, ...]  # one per engine, the usual engine first
    latency: tuple[Measurement, ...]
    accuracy: AccuracyResult | None  # of exactly the weights this file descends from
    gate: GateVerdict | None = None

    @property
    def parity_state(self) -> ParityState:
        """The verdict over all engines: one that fails is enough, and one that executed it counts."""
        found = {parity.status for parity in self.parities}
        order: tuple[ParityState, ...] = ("failed", "passed", "not executed")
        return next((state for state in order if state in found), "not checked")

    @property
    def executed(self) -> tuple[ParityResult, ...]:
        """The verdicts that rest on figures, or on a file that could not even be opened."""
        return tuple(parity for parity in self.parities if parity.status != "not executed")

    @property
    def checks(self) -> list[Check]:
        """Structural checks of the file; every engine sees the same ones."""
        return next((parity.checks for parity in self.parities if parity.checks), [])

    def explain_unranked(self, measurement: Measurement) -> list[str]:
        """Why a latency must not be compared with others; empty when it may."""
        reasons = list(measurement.invalid)
        if measurement.software_gpu:
            reasons.append("a software-rendered GPU, never ranked")
        if self.parity_state == "failed":
            reasons.append("the file failed parity")
        return reasons


@dataclass(frozen=True)
class VariantRow:
    """One variant with its files."""

    name: str
    declaration: Variant | None
    accuracy: AccuracyResult | None
    files: tuple[FileRow, ...]

    @property
    def parameters(self) -> int | None:
        """Parameter count, where a manifest states it."""
        counts = (file.artifact.structure.get("parameters") for file in self.files)
        return next((n for n in counts if isinstance(n, int) and not isinstance(n, bool)), None)

    @property
    def series(self) -> str:
        """Which series of the plots this belongs to: its depth."""
        return str(self.declaration.encoder_layers) if self.declaration else "other"


@dataclass(frozen=True)
class Timed:
    """One latency with the rows it belongs to."""

    variant: VariantRow
    file: FileRow
    measurement: Measurement


@dataclass(frozen=True)
class DeviceGroup:
    """All latencies of one device on one machine: the only ones that may be compared."""

    device: str
    machine: Machine
    timed: tuple[Timed, ...]

    @property
    def runtimes(self) -> list[str]:
        """Distinct runtimes, sorted."""
        return sorted({t.measurement.runtime for t in self.timed})

    @property
    def common_settings(self) -> dict[str, str]:
        """Settings that every row shares; the rest differ by row."""
        first, *rest = (t.measurement.settings for t in self.timed)
        return {k: v for k, v in sorted(first.items()) if all(r.get(k) == v for r in rest)}


def join_variants(report: ReportInput) -> list[VariantRow]:
    """Variants deep first, then large first, each with its files in the order of their names."""
    by_file = index_by_file(report.artifacts)
    parity = sorted(report.parity, key=rank_engine)
    accuracy = {a.variant: a for a in report.accuracy}
    rows = []
    for name in sorted({a.variant for a in report.artifacts} | set(accuracy)):
        files = []
        for artifact in (a for a in report.artifacts if a.variant == name):
            key = (artifact.variant, artifact.kind, artifact.recipe)
            weights = find_weights_sha256(artifact, by_file)
            result = accuracy.get(name)
            same = not isinstance(weights, BrokenParent) and result and result.weights_sha256 == weights
            latency = tuple(m for m in report.latency if _key(m) == key)
            verdicts = tuple(p for p in parity if _key(p) == key)
            gate = next((g for g in report.gates if _key(g) == key), None)
            files.append(FileRow(artifact, verdicts, latency, result if same else None, gate))
        files.sort(key=_rank_file)
        declaration = next((v for f in files if (v := read_variant(f.artifact))), None)
        rows.append(VariantRow(name, declaration, accuracy.get(name), tuple(files)))
    return sorted(rows, key=_rank_variant)


_KIND_ORDER = {"onnx": 0, "tflite": 1, "tfjs": 2, "coreml": 3}


def _key(fact: ParityResult | Measurement | GateVerdict) -> tuple[str, str, str]:
    return (fact.artifact.variant, fact.artifact.kind, fact.artifact.recipe)


def _rank_file(file: FileRow) -> tuple[int, str, bool, str]:
    kind, recipe = file.artifact.kind, file.artifact.recipe
    return (_KIND_ORDER.get(kind, len(_KIND_ORDER)), kind, recipe != "fp32", recipe)


def _rank_variant(row: VariantRow) -> tuple[int, int, str]:
    declared = row.declaration
    return (-declared.encoder_layers, -declared.height_px, row.name) if declared else (0, 0, row.name)


# The usual engine of each kind first, then its browser's other backends, then other browsers.
_BROWSER_ORDER = ("onnxruntime", "litert", "chromium", "firefox", "webkit", "mil", "coreml")
_BACKEND_ORDER = ("wasm", "webgl", "webgpu")


def rank_engine(fact: ParityResult) -> tuple[int, str, int, str]:
    """Sort key of an engine: by family, then wasm before WebGL before the rest."""
    family, _, backend = fact.engine.partition("-")
    place = _BROWSER_ORDER.index(family) if family in _BROWSER_ORDER else len(_BROWSER_ORDER)
    kind = backend.partition("-")[0]
    order = _BACKEND_ORDER.index(kind) if kind in _BACKEND_ORDER else len(_BACKEND_ORDER)
    return (place, family, order if backend else 0, fact.engine)


@dataclass(frozen=True)
class EngineGroup:
    """All files that one engine executed, on the same images."""

    engine: str
    runtimes: tuple[str, ...]
    software_gpu: bool
    images: tuple[ImageSet, ...]
    rows: tuple[tuple[FileRow, ParityResult], ...]
    settings: dict[str, str]  # that all rows share

    def list_limits(self) -> list[tuple[Limits, list[str]]]:
        """Distinct limits with what they were applied to, ``fp16`` or ``tfjs fp16``."""
        found: dict[str, tuple[Limits, list[str]]] = {}
        for file, parity in self.rows:
            key = parity.limits.model_dump_json()
            labels = found.setdefault(key, (parity.limits, []))[1]
            label = f"{file.artifact.kind} {file.artifact.recipe}"
            if label not in labels:
                labels.append(label)
        return list(found.values())

    @property
    def passed(self) -> int:
        """How many of its files keep their limits."""
        return sum(parity.status == "passed" for _, parity in self.rows)

    def find_worst(self, figure: str, *, lowest: bool = False) -> float | None:
        """The worst value of a figure over all files; None where no file has it."""
        values = [getattr(parity, figure) for _, parity in self.rows]
        known = [float(value) for value in values if value is not None]
        if not known:
            return None
        return min(known) if lowest else max(known)

    def find_max_abs(self, recipe: str) -> float | None:
        """The furthest logit of any file of a recipe; None without one that was executed."""
        outputs = [o for file, parity in self.rows if file.artifact.recipe == recipe for o in parity.outputs]
        return max((output.max_abs for output in outputs), default=None)

    @property
    def recipes(self) -> list[str]:
        """Recipes of its files, in the files' order."""
        return list(dict.fromkeys(file.artifact.recipe for file, _ in self.rows))

    @property
    def is_reference(self) -> bool:
        """Whether a file's meaning was computed, and not what its own runtime makes of it."""
        return self.engine == MIL_REFERENCE


MIL_REFERENCE = "mil-reference"


def group_engines(variants: Sequence[VariantRow]) -> list[EngineGroup]:
    """Executed files by engine, in the order of the kinds of file they run."""
    groups: dict[str, list[tuple[FileRow, ParityResult]]] = {}
    for variant in variants:
        for file in variant.files:
            for parity in file.executed:
                groups.setdefault(parity.engine, []).append((file, parity))
    ordered = sorted(groups.values(), key=lambda rows: (_rank_file(rows[0][0])[0], rank_engine(rows[0][1])))
    return [_make_engine_group(rows) for rows in ordered]


def _make_engine_group(rows: Sequence[tuple[FileRow, ParityResult]]) -> EngineGroup:
    facts = [parity for _, parity in rows]
    ran = [fact for fact in facts if fact.outputs] or facts
    shared = {
        key: value
        for key, value in sorted(ran[0].settings.items())
        if all(fact.settings.get(key) == value for fact in ran)
    }
    return EngineGroup(
        engine=facts[0].engine,
        runtimes=tuple(dict.fromkeys(fact.runtime for fact in ran)),
        software_gpu=any(fact.software_gpu for fact in facts),
        images=tuple({fact.images.sha256: fact.images for fact in facts}.values()),
        rows=tuple(rows),
        settings=shared,
    )


def group_devices(variants: Sequence[VariantRow]) -> list[DeviceGroup]:
    """Latencies by device and machine, in the order of the kinds of file they run."""
    groups: dict[tuple[str, str], list[Timed]] = {}
    for variant in variants:
        for file in variant.files:
            for measurement in file.latency:
                machine = measurement.machine
                key = (measurement.device, f"{machine.cpu} {machine.cores} {machine.system}")
                groups.setdefault(key, []).append(Timed(variant, file, measurement))
    ordered = [groups[key] for key in sorted(groups, key=lambda key: (_rank_file(groups[key][0].file), key))]
    return [DeviceGroup(t[0].measurement.device, t[0].measurement.machine, tuple(t)) for t in ordered]


def list_image_sets(report: ReportInput) -> list[ImageSet]:
    """The distinct image sets that shown facts were measured on, and the one asked for."""
    measured = [*(fact.images for fact in report.accuracy), *(fact.images for fact in report.parity)]
    sets = [report.context.images, *measured]
    unique = {images.sha256: images for images in sets if images is not None}
    return sorted(unique.values(), key=lambda images: images.name)


def list_machines(report: ReportInput) -> list[Machine]:
    """The distinct machines that shown facts were measured on."""
    machines = {fact.machine for fact in report.parity}
    machines |= {fact.machine for fact in report.latency}
    machines |= {fact.machine for fact in report.accuracy}
    return sorted(machines, key=lambda machine: machine.model_dump_json())
