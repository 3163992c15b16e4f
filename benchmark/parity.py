"""Parity: does a shipped file still compute what the trained network computes, in task units?"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.accuracy_drop import DropCounter
from benchmark.calibration_check import check_calibration
from benchmark.comparison import Comparison, judge
from benchmark.heatmaps import write_heatmaps
from benchmark.limits import limits_of
from deploy import find_target
from model_zoo import find_variant
from nailcore.artifact import (
    Artifact,
    BrokenParent,
    artifact_path,
    manifest_path,
    open_artifact,
    read_manifest,
    trace_weights,
)
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.errors import ArtifactError, ConversionError, DataError, MissingToolError, UnknownNameError
from nailcore.facts import (
    AccuracyDrop,
    ArtifactRef,
    Check,
    Gate,
    ImageSet,
    Limits,
    ParityResult,
    WeightsFacts,
    WorstImage,
    read_fact,
)
from nailcore.measure import describe_machine
from nailcore.preprocess import letterbox
from nailcore.runtime import Engine, Images, Logits, Runner, Target
from nailcore.storage import hash_file
from nailcore.variant import Variant

if TYPE_CHECKING:
    from benchmark.coreml_golden import GoldenRunner

# By name, so that only the files a gate speaks of are checked again when its source changes.
GATES: Mapping[str, str] = {"coreml": "benchmark.coreml_gates"}  # kind -> module with check_gates()


class TorchReference:
    """The trained network itself, in export form, as a Runner.

    ``double`` computes in float64. Verdicts need it: torch's own float32 kernels are further from the exact
    logits (1.1e-4 for nail55-480 on photographs) than those of onnxruntime (2e-5) or XNNPACK (5e-5).
    """

    def __init__(self, variant: Variant, weights: Path, *, double: bool = False) -> None:
        import torch

        from nailcore.nets import load_network

        self.dtype = torch.float64 if double else torch.float32
        self.network = load_network(variant, weights).to(self.dtype)
        self.versions = {"torch": str(torch.__version__)}
        self.runtime = f"torch {self.versions['torch']}{', float64' if double else ''}"

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named float32 logits."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.dtype)
        with torch.inference_mode():
            values = self.network(x)
        return {name: value.float().numpy() for name, value in zip(self.network.names, values, strict=True)}

    def close(self) -> None:
        """Nothing to give back."""


def compare_runners(
    reference: Runner,
    found: Runner,
    samples: Sequence[Sample],
    variant: Variant,
    drop: DropCounter | None = None,
) -> Comparison:
    """Feed the same letterboxed photos to both, one at a time; ``drop`` counts both against the labels."""
    comparison = Comparison()
    for sample in samples:
        image = letterbox(sample.load_image(), variant.height_px, variant.width_px)[None]
        ours, theirs = reference.run(image), found.run(image)
        comparison.add(sample.name, ours, theirs, image[0])
        if drop is not None:
            drop.add(sample.name, sample.load_labels().mask, ours, theirs)
    return comparison


def find_weights_hash(manifest: Path) -> str:
    """The hash of the weights an artefact descends from, along the manifests beside it; "" when lost.

    Raises:
        ArtifactError: a manifest on the way is damaged.
    """

    def find_parent(_: Artifact, name: str) -> Artifact | None:
        beside = manifest_path(manifest.parent / name)
        return read_manifest(beside) if beside.is_file() else None

    found = trace_weights(read_manifest(manifest), find_parent)
    return "" if isinstance(found, BrokenParent) else found


def read_heads_trained(weights: Path) -> tuple[str, ...]:
    """The heads that the facts beside a weights file say are trained; without facts, the mask's alone."""
    facts = weights.with_suffix(".json")
    return read_fact(facts, WeightsFacts).heads_trained if facts.is_file() else ("fgbg",)


def find_engine(target: Target, name: str = "") -> Engine:
    """An engine of a target by name; the first one when none is given.

    Raises:
        UnknownNameError: with the nearest names.
    """
    engines = {engine.name: engine for engine in target.ENGINES}
    if not name:
        return target.ENGINES[0]
    if name not in engines:
        raise UnknownNameError(f"engine of {target.KIND}", name, engines)
    return engines[name]


def describe_images(dataset: Dataset, split: Split, engine: Engine) -> tuple[tuple[Sample, ...], ImageSet]:
    """The images an engine is shown, and their description.

    A slow engine sees the first of a part only: the set's name and count say so, its hash is over what
    was seen, and ``part_of_sha256`` ties it to the whole part.
    """
    samples, images = dataset.part(split), dataset.describe(split)
    limit = engine.image_limit
    if limit is None or limit >= len(samples):
        return samples, images
    seen = samples[:limit]
    first = replace(dataset, samples=seen, split=None).describe("all")
    name = f"first {limit} of {images.count}, {images.name}"
    return seen, first.model_copy(update={"name": name, "part_of_sha256": images.sha256})


@dataclass
class _Verdict:
    runtime: str = "not executed"
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    worst_images: list[WorstImage] = field(default_factory=list)
    accuracy: AccuracyDrop | None = None
    checks: list[Check] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class _Case:
    """Everything one verdict is about."""

    manifest: Path
    artifact: Artifact
    weights: Path
    samples: tuple[Sample, ...]
    engine: Engine
    limits: Limits
    heads_trained: tuple[str, ...]
    heatmap_dir: Path | None
    golden: GoldenRunner | None

    @property
    def variant(self) -> Variant:
        """The declaration of the artefact's variant."""
        return find_variant(self.artifact.variant)


@lru_cache(maxsize=1)
def _open_reference(variant: Variant, weights: Path, weights_sha256: str) -> TorchReference:
    # Several engines of one variant follow each other in a worker.
    return TorchReference(variant, weights, double=True)


def _execute(case: _Case, path: Path, weights_sha256: str) -> _Verdict:
    verdict = _Verdict()
    artifact, variant = case.artifact, case.variant
    target = find_target(artifact.kind)
    if hasattr(target, "check_structure"):
        verdict.checks = target.check_structure(variant, artifact, path)
        verdict.failures = [
            f"{artifact.label}: {c.name}: {c.detail}." for c in verdict.checks if not c.passed
        ]
    try:
        runner = _open_runner(case, target, path)
    except MissingToolError as error:
        verdict.note = str(error)
        return verdict
    try:
        _compare(case, runner, _open_reference(variant, case.weights, weights_sha256), verdict)
    except ConversionError as error:
        verdict.failures.append(f"{artifact.label}: {error.message}")
    finally:
        runner.close()
    if (
        artifact.kind in GATES and case.engine == target.ENGINES[0]
    ):  # gates are about the file: once is enough
        _check_gates(case, path, verdict)
    return verdict


def _open_runner(case: _Case, target: Target, path: Path) -> Runner:
    """The engine itself, or what it answered elsewhere."""
    return case.golden or target.open_runner(case.artifact, path, case.engine.name)


def _check_gates(case: _Case, path: Path, verdict: _Verdict) -> None:
    """Independent proofs about the file, beside its figures."""
    artifact = case.artifact
    module = importlib.import_module(GATES[artifact.kind])
    sibling = _find_sibling(case)
    verdict.gates = module.check_gates(case.variant, artifact, path, sibling, case.weights, case.samples)
    verdict.failures += [
        f"{artifact.label}: gate '{gate.name}': {gate.detail}" for gate in verdict.gates if not gate.passed
    ]


def _find_sibling(case: _Case) -> Path | None:
    """The fp32 file of the same conversion beside the artefact; None when it is missing or damaged."""
    suffix = find_target(case.artifact.kind).SUFFIX
    name = artifact_path(Path(), case.artifact.variant, "fp32", suffix).name
    beside = manifest_path(case.manifest.with_name(name))
    if beside == case.manifest or not beside.is_file():
        return None
    try:
        sibling, path = open_artifact(beside)
    except ArtifactError:
        return None
    same = sibling.made_by.parent_sha256 == case.artifact.made_by.parent_sha256
    return path if same else None


def _compare(case: _Case, runner: Runner, reference: Runner, verdict: _Verdict) -> None:
    verdict.runtime = runner.runtime
    verdict.versions = {**runner.versions, **reference.versions}
    verdict.settings = {str(k): str(v) for k, v in getattr(runner, "settings", {}).items()}
    if case.golden is not None:
        verdict.settings |= {"recorded in": case.golden.golden.name}
    drop = DropCounter(case.variant)
    comparison = compare_runners(reference, runner, case.samples, case.variant, drop)
    verdict.failures += judge(case.artifact.label, comparison, case.limits, case.heads_trained)
    if case.heatmap_dir is not None:
        verdict.worst_images = write_heatmaps(comparison.suspects, case.heatmap_dir)
    verdict.comparison, verdict.accuracy = comparison, drop.describe()


def check_parity(
    manifest: Path,
    weights: Path,
    dataset: Dataset,
    split: Split,
    *,
    engine: str = "",
    heatmap_dir: Path | None = None,
    heads_trained: Sequence[str] | None = None,
    golden: Path | None = None,
) -> ParityResult:
    """Compare the artefact of a manifest with the torch network on one part of a data folder.

    A negative verdict is a result, not an exception: so are a file that is damaged, one that was
    built from other weights, and one that nothing here can execute.

    Args:
        manifest: of the artefact, which lies beside it.
        weights: safetensors file of the network to compare with.
        dataset, split: the photographs.
        engine: one of the target's; default: its usual one.
        heatmap_dir: where heat-maps of the worst images are written; None: nowhere.
        heads_trained: heads whose figures are judged; default: what the facts beside the weights say.
        golden: recorded answers to judge in the engine's place (see ``benchmark.coreml_golden``); they
            must be of this very file and these very images.

    Raises:
        ArtifactError: the manifest is missing or damaged; or the golden is, or it is of another file.
        UnknownNameError: the target has no such engine.
        WeightsError, DataError: the reference itself cannot be had.
        BrowserError: an installed browser failed, which says nothing about the file.
    """
    artifact = read_manifest(manifest)
    chosen = find_engine(find_target(artifact.kind), engine)
    weights_sha256 = hash_file(weights)
    samples, images = describe_images(dataset, split, chosen)
    if not samples:
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    case = _Case(
        manifest=manifest,
        artifact=artifact,
        weights=weights,
        samples=samples,
        engine=chosen,
        limits=limits_of(artifact, chosen.name),
        heads_trained=tuple(read_heads_trained(weights) if heads_trained is None else heads_trained),
        heatmap_dir=heatmap_dir,
        golden=_open_golden(golden, artifact),
    )
    verdict = _reach_verdict(case, weights_sha256)
    if verdict.comparison is not None:  # a file that was executed
        verdict.failures += check_calibration(artifact, case.variant, dataset)
    return _describe(case, verdict, images, weights_sha256)


def _open_golden(golden: Path | None, artifact: Artifact) -> GoldenRunner | None:
    if golden is None:
        return None
    from benchmark.coreml_golden import GoldenRunner

    return GoldenRunner(golden, artifact)


def _reach_verdict(case: _Case, weights_sha256: str) -> _Verdict:
    label = case.artifact.label
    try:
        _, path = open_artifact(case.manifest)
        verdict = _execute(case, path, weights_sha256)
    except ArtifactError as error:
        verdict = _Verdict(failures=[f"{label}: {error.message}"])
    if find_weights_hash(case.manifest) != weights_sha256:
        verdict.failures.append(
            f"{label}: was not built from the weights it is compared with ({case.weights.name}, "
            f"SHA-256 {weights_sha256[:12]}…)."
        )
    return verdict


def _describe(case: _Case, verdict: _Verdict, images: ImageSet, weights_sha256: str) -> ParityResult:
    c = verdict.comparison
    return ParityResult(
        artifact=ArtifactRef.of(case.artifact),
        weights_sha256=weights_sha256,
        status="failed" if verdict.failures else "not executed" if verdict.note else "passed",
        runtime=verdict.runtime,
        versions=verdict.versions,
        machine=case.golden.card.machine if case.golden else describe_machine(),
        images=images,
        limits=case.limits,
        outputs=c.outputs() if c else [],
        flipped_permille=c.flipped_permille if c else None,
        worst_image_flipped_permille=c.worst[0] if c else None,
        worst_image=c.worst[1] if c else None,
        mask_iou=c.mask_iou if c else None,
        boundary_iou=c.boundary_iou if c else None,
        contour_shift_px=c.contour.shift_px if c else None,
        contour_shift_image=c.contour_image if c else None,
        blobs_appeared=c.contour.appeared if c else None,
        blobs_vanished=c.contour.vanished if c else None,
        lone_blob_px=c.contour.largest_lone_px if c else None,
        finger_agreement=c.finger_agreement if c else None,
        direction_error_median_deg=c.direction_error_median_deg if c else None,
        direction_error_p90_deg=c.direction_error_p90_deg if c else None,
        heads_trained=case.heads_trained,
        engine=case.engine.name,
        # An engine that may fall back to a GPU played by the CPU says what it got.
        software_gpu=case.engine.software_gpu and verdict.settings.get("software gpu") != "no",
        settings=verdict.settings,
        worst_images=verdict.worst_images,
        accuracy=verdict.accuracy,
        gates=verdict.gates,
        checks=verdict.checks,
        failures=verdict.failures,
        note=verdict.note,
    )
