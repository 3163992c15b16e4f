"""Parity: does a shipped file still compute what the trained network computes, in task units?"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploy import find_target
from model_zoo import find_variant
from nailcore.artifact import Artifact, manifest_path, open_artifact, read_manifest
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.errors import ArtifactError, ConversionError, DataError, MissingToolError, NailtoolError
from nailcore.facts import ArtifactRef, Check, Limits, OutputParity, ParityResult
from nailcore.measure import describe_machine
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Logits, Runner
from nailcore.storage import hash_file
from nailcore.variant import Variant

LIMITS_FILE = Path(__file__).parent / "limits.toml"
F64 = npt.NDArray[np.float64]


@cache
def load_limits() -> dict[str, Limits]:
    """Limits by ``kind.recipe``; raises NailtoolError when the file is damaged."""
    try:
        table = tomllib.loads(LIMITS_FILE.read_text("utf-8"))
        return {key: Limits(**{"max_abs": None, **values}) for key, values in table.items()}
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise NailtoolError(f"{LIMITS_FILE.name}: not a valid table of limits: {error}") from error


def limits_of(artifact: Artifact) -> Limits:
    """The limits an artefact is judged by."""
    key = f"{artifact.kind}.{artifact.recipe}"
    limits = load_limits()
    if key not in limits:
        raise NailtoolError(
            f"No limits for {key}.", hint=f'Add a table ["{key}"] to benchmark/{LIMITS_FILE.name}.'
        )
    return limits[key]


class TorchReference:
    """The trained network itself, in export form, as a Runner."""

    def __init__(self, variant: Variant, weights: Path) -> None:
        import torch

        from nailcore.nets import load_network

        self.network = load_network(variant, weights)
        self.versions = {"torch": str(torch.__version__)}
        self.runtime = f"torch {self.versions['torch']}"

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named logits."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
        with torch.inference_mode():
            values = self.network(x)
        return {name: value.numpy() for name, value in zip(self.network.names, values, strict=True)}

    def close(self) -> None:
        """Nothing to give back."""


@dataclass
class Comparison:
    """Running totals of one artefact against the reference; memory does not grow with images."""

    max_abs: dict[str, float] = field(default_factory=dict)
    squared: dict[str, float] = field(default_factory=dict)
    dots: dict[str, F64] = field(default_factory=dict)  # (a·b, a·a, b·b)
    span: dict[str, tuple[float, float]] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    flipped: int = 0
    pixels: int = 0
    both: int = 0
    either: int = 0
    worst: tuple[float, str] = (-1.0, "")

    def add(self, name: str, reference: Logits, found: Logits) -> None:
        """Compare one image's logits; outputs are matched by name, never by shape or order."""
        if set(found) != set(reference):
            raise ConversionError(
                f"Outputs are named {sorted(found)}, the network's are {sorted(reference)}."
            )
        for output, a in reference.items():
            self._add_output(output, a.astype(np.float64), found[output].astype(np.float64))
        ours = reference["fgbg"].argmax(1) == 1
        theirs = found["fgbg"].argmax(1) == 1
        flipped = int(np.count_nonzero(ours != theirs))
        self.flipped += flipped
        self.pixels += ours.size
        self.both += int(np.count_nonzero(ours & theirs))
        self.either += int(np.count_nonzero(ours | theirs))
        self.worst = max(self.worst, (1000 * flipped / ours.size, name))

    def _add_output(self, output: str, a: F64, b: F64) -> None:
        if a.shape != b.shape:
            raise ConversionError(f"Output '{output}' is {b.shape}, the network's is {a.shape}.")
        if not np.isfinite(b).all():
            raise ConversionError(f"Output '{output}' holds NaN or infinite values.")
        difference = np.abs(a - b)
        low, high = self.span.get(output, (np.inf, -np.inf))
        self.max_abs[output] = max(self.max_abs.get(output, 0.0), float(difference.max()))
        self.squared[output] = self.squared.get(output, 0.0) + float((difference**2).sum())
        self.values[output] = self.values.get(output, 0) + a.size
        self.span[output] = (min(low, float(a.min())), max(high, float(a.max())))
        dots = np.array([(a * b).sum(), (a * a).sum(), (b * b).sum()])
        self.dots[output] = self.dots.get(output, np.zeros(3)) + dots

    def outputs(self) -> list[OutputParity]:
        """Figures per output. PSNR's peak is the reference's own range of values."""
        results = []
        for name in self.max_abs:
            mse = self.squared[name] / self.values[name]
            low, high = self.span[name]
            peak = max(high - low, 1e-12)
            ab, aa, bb = self.dots[name]
            norm = float(np.sqrt(aa * bb))
            psnr = None if mse == 0 else float(10 * np.log10(peak**2 / mse))
            cosine = float(ab / norm) if norm else None
            results.append(OutputParity(name=name, max_abs=self.max_abs[name], psnr_db=psnr, cosine=cosine))
        return results

    @property
    def flipped_permille(self) -> float:
        """Nail-mask pixels that changed side, of all pixels."""
        return 1000 * self.flipped / self.pixels

    @property
    def mask_iou(self) -> float:
        """The file's nail mask against the reference's, pooled."""
        return self.both / self.either if self.either else 1.0


def judge(label: str, comparison: Comparison, limits: Limits) -> list[str]:
    """One sentence per broken limit, naming artefact, output, figure and limit."""
    failures = []
    for output in comparison.outputs():
        if limits.max_abs is not None and not output.max_abs <= limits.max_abs:
            failures.append(
                f"{label}: output '{output.name}' differs by {output.max_abs:.3g} "
                f"(max-abs; limit {limits.max_abs:.3g})."
            )
    if not comparison.flipped_permille <= limits.flipped_permille:
        failures.append(
            f"{label}: output 'fgbg' flips {comparison.flipped_permille:.3f} ‰ of the mask pixels "
            f"(limit {limits.flipped_permille:.3g} ‰; worst image {comparison.worst[1]}: "
            f"{comparison.worst[0]:.2f} ‰)."
        )
    return failures


def compare_runners(
    reference: Runner, found: Runner, samples: tuple[Sample, ...], variant: Variant
) -> Comparison:
    """Feed the same letterboxed photos to both, one at a time."""
    comparison = Comparison()
    for sample in samples:
        image = letterbox(sample.load_image(), variant.height_px, variant.width_px)[None]
        comparison.add(sample.name, reference.run(image), found.run(image))
    return comparison


def find_weights_hash(manifest: Path) -> str:
    """The hash of the weights an artefact descends from, along the manifests of its parents.

    Raises:
        ArtifactError: a manifest on the way is damaged.
    """
    artifact = read_manifest(manifest)
    parent = manifest_path(manifest.parent / artifact.made_by.parent)
    if not parent.is_file():
        # An artefact's name begins with its variant's; anything else is the weights file.
        lost = artifact.made_by.parent.startswith(f"{artifact.variant}.")
        return "" if lost else artifact.made_by.parent_sha256
    if read_manifest(parent).sha256 != artifact.made_by.parent_sha256:
        return ""  # converted from a file that has since been replaced
    return find_weights_hash(parent)


@dataclass
class _Verdict:
    runtime: str = "not executed"
    versions: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    checks: list[Check] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    note: str = ""


def _execute(artifact: Artifact, path: Path, weights: Path, samples: tuple[Sample, ...]) -> _Verdict:
    verdict = _Verdict()
    variant = find_variant(artifact.variant)
    target = find_target(artifact.kind)
    if hasattr(target, "check_structure"):
        verdict.checks = target.check_structure(variant, artifact, path)
        verdict.failures = [
            f"{artifact.label}: {c.name}: {c.detail}." for c in verdict.checks if not c.passed
        ]
    try:
        runner = target.open_runner(artifact, path)
    except MissingToolError as error:
        verdict.note = str(error)
        return verdict
    try:
        reference = TorchReference(variant, weights)
        verdict.runtime = runner.runtime
        verdict.versions = {**runner.versions, **reference.versions}
        comparison = compare_runners(reference, runner, samples, variant)
        verdict.failures += judge(artifact.label, comparison, limits_of(artifact))
        verdict.comparison = comparison
    except ConversionError as error:
        verdict.failures.append(f"{artifact.label}: {error.message}")
    finally:
        runner.close()
    return verdict


def check_parity(manifest: Path, weights: Path, dataset: Dataset, split: Split) -> ParityResult:
    """Compare the artefact of a manifest with the torch network on one part of a data folder.

    A negative verdict is a result, not an exception: so are a file that is damaged, one that was
    built from other weights, and one that nothing here can execute.

    Raises:
        ArtifactError: the manifest is missing or damaged.
        WeightsError, DataError: the reference itself cannot be had.
    """
    artifact = read_manifest(manifest)
    weights_sha256 = hash_file(weights)
    samples = dataset.part(split)
    if not samples:
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    try:
        _, path = open_artifact(manifest)
        verdict = _execute(artifact, path, weights, samples)
    except ArtifactError as error:
        verdict = _Verdict(failures=[f"{artifact.label}: {error.message}"])
    if find_weights_hash(manifest) != weights_sha256:
        verdict.failures.append(
            f"{artifact.label}: was not built from the weights it is compared with ({weights.name}, "
            f"SHA-256 {weights_sha256[:12]}…)."
        )
    comparison = verdict.comparison
    return ParityResult(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=weights_sha256,
        status="failed" if verdict.failures else "not executed" if verdict.note else "passed",
        runtime=verdict.runtime,
        versions=verdict.versions,
        machine=describe_machine(),
        images=dataset.describe(split),
        limits=limits_of(artifact),
        outputs=comparison.outputs() if comparison else [],
        flipped_permille=comparison.flipped_permille if comparison else None,
        worst_image_flipped_permille=comparison.worst[0] if comparison else None,
        worst_image=comparison.worst[1] if comparison else None,
        mask_iou=comparison.mask_iou if comparison else None,
        checks=verdict.checks,
        failures=verdict.failures,
        note=verdict.note,
    )
