"""Three gates for CoreML: what the conversion means, what the shipped file holds, what it does in float16."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from benchmark.comparison import Comparison
from benchmark.coreml_sibling import build_sibling, convert_prepared, load_prepared, load_trained
from nailcore.artifact import Artifact
from nailcore.data.folder import Sample
from nailcore.errors import ArtifactError, ConversionError, DataError, NailtoolError
from nailcore.facts import Gate
from nailcore.preprocess import letterbox
from nailcore.runtime import Layer, Logits
from nailcore.storage import hash_file, hash_path
from nailcore.variant import Variant

if TYPE_CHECKING:
    import torch

    from deploy.mil import MilModel
    from nailcore.nets import ExportForm

LIMITS_FILE = Path(__file__).parent / "limits.toml"
LIMITS_TABLE = "gates.coreml"
FLOAT16_MAX = 65504.0
SEMANTICS_PHOTOS = 3  # float32 shows a wrong constant on any image; more photos only cost time
PATTERN = "test pattern"


class GateLimits(BaseModel):
    """The table ["gates.coreml"] of limits.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    semantics_max_abs: float  # of any logit, float32 sibling against torch, at most
    psnr_db: float  # of each output, shipped file against torch, at least
    headroom: float  # 65504 over the largest activation, at least
    reason: str


@cache
def load_gate_limits(recipe: str, path: Path = LIMITS_FILE) -> GateLimits:
    """The gates' own limits: the table ["gates.coreml"], overlaid by ["gates.coreml.<recipe>"] if any.

    Raises:
        NailtoolError: the file or its table is missing or damaged.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        return GateLimits.model_validate(tables[LIMITS_TABLE] | tables.get(f"{LIMITS_TABLE}.{recipe}", {}))
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError, ValueError) as error:
        raise NailtoolError(
            f"{path.name}: no valid table [{LIMITS_TABLE!r}]: {error}",
            hint=f"It needs {', '.join(GateLimits.model_fields)}.",
        ) from error


def make_pattern(height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB test pattern: no colour, row or column can be mistaken for another.

    Red grows to the right, green downwards in steps, blue is a grid that gets finer towards the lower
    right; a black block and a red disc stand off centre, so that no mirror image or shift looks alike.
    """
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float64)
    u, v = x / width_px, y / height_px
    red = 255 * u
    green = np.floor(8 * v) * 36
    blue = np.where(np.sin(60 * u**2) * np.sin(45 * v**2) > 0, 230.0, 20.0)
    image = np.stack([red, green, blue], axis=-1)
    image[int(0.1 * height_px) : int(0.3 * height_px), int(0.55 * width_px) : int(0.7 * width_px)] = 0
    disc = (u - 0.25) ** 2 + (v - 0.65) ** 2 < 0.02
    image[disc] = (250, 10, 60)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


@dataclass(frozen=True)
class _Case:
    """What all three gates look at."""

    variant: Variant
    artifact: Artifact
    path: Path
    sibling: Path
    built: bool  # the sibling was converted for this check
    samples: tuple[Sample, ...]
    network: ExportForm  # the trained one
    prepared: ExportForm | None  # what a recipe's passes made of it: then the sibling is of this one

    def reference(self, image: npt.NDArray[np.uint8]) -> Logits:
        """The trained network on one (H, W, 3) RGB image."""
        return _run_torch(self.network, image)

    def converted(self, image: npt.NDArray[np.uint8]) -> Logits:
        """The network that was converted, on one (H, W, 3) RGB image."""
        return _run_torch(self.prepared or self.network, image)

    def execute(self, model: MilModel, image: npt.NDArray[np.uint8], **options: Any) -> Logits:
        """A package on one image, outputs by our names."""
        found = model.run({self.artifact.input_name: image}, **options)
        return {
            ours: np.asarray(found[theirs], np.float32)
            for ours, theirs in self.artifact.output_names.items()
            if theirs in found
        }

    def photos(self, limit: int | None = None) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        """Letterboxed photographs, one in memory at a time."""
        for sample in self.samples[:limit]:
            yield sample.name, letterbox(sample.load_image(), self.variant.height_px, self.variant.width_px)


def _run_torch(network: ExportForm, image: npt.NDArray[np.uint8]) -> Logits:
    import torch

    x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).float()
    with torch.inference_mode():
        values = network(x)
    return {name: value.numpy() for name, value in zip(network.names, values, strict=True)}


def check_gates(  # noqa: PLR0917 - the same six things every target's gates are given
    variant: Variant,
    artifact: Artifact,
    path: Path,
    sibling: Path | None,
    weights: Path,
    samples: Sequence[Sample],
) -> list[Gate]:
    """The gates "semantics", "identity" and "end to end" of one CoreML package.

    Args:
        variant: of the package.
        artifact: its manifest.
        path: the package; exactly these bytes are judged.
        sibling: the float32 package of the same conversion; None or missing: it is converted anew from
            the weights. Not used where the artefact itself computes in float32 with float32 weights.
        weights: safetensors file of the trained network.
        samples: photographs; "semantics" looks at the first three and a test pattern.

    Raises:
        DataError: no photographs.
        WeightsError: the weights cannot be used.
        ArtifactError: what the package was converted from is missing or is another by now.
    """
    if not samples:
        raise DataError("The gates of CoreML need at least one photograph.")
    with tempfile.TemporaryDirectory(prefix="nailtool-sibling-") as scratch:
        built = False
        prepared = load_prepared(variant, artifact, path, weights)
        if artifact.recipe == "fp32":
            sibling = path
        elif prepared is not None:
            sibling, built = convert_prepared(variant, prepared, Path(scratch)), True
        elif sibling is None or not sibling.exists():
            sibling, built = build_sibling(variant, weights, Path(scratch)), True
        network = load_trained(variant, weights, hash_file(weights))
        case = _Case(variant, artifact, path, sibling, built, tuple(samples), network, prepared)
        return [
            _guard("semantics", _check_semantics, case),
            _guard("identity", _check_identity, case),
            _guard("end to end", _check_end_to_end, case),
        ]


def _guard(name: str, check: Any, case: _Case) -> Gate:
    """A package that cannot be read or executed fails the gate; it does not end the check."""
    try:
        gate: Gate = check(case)
    except (ArtifactError, ConversionError) as error:
        return Gate(name=name, passed=False, detail=error.message)
    return gate


def _describe_sibling(case: _Case) -> str:
    if case.sibling == case.path:
        return "the file itself"
    if case.prepared is not None:
        return "a float32 sibling of the network with rounded weights"
    return "a sibling converted for this check" if case.built else case.sibling.name


def _check_semantics(case: _Case) -> Gate:
    """Float32 shows what float16's noise hides: a scale of .225 for .226, an epsilon, a rounded mean."""
    from deploy.mil import load_package

    limits = load_gate_limits(case.artifact.recipe)
    model = load_package(case.sibling)
    pattern = make_pattern(case.variant.height_px, case.variant.width_px)
    worst: dict[str, tuple[float, str]] = {}
    for name, image in [*case.photos(SEMANTICS_PHOTOS), (PATTERN, pattern)]:
        reference, found = case.converted(image), case.execute(model, image, precision="fp32")
        for output, expected in reference.items():
            if output not in found or found[output].shape != expected.shape:
                raise ConversionError(f"{case.sibling.name}: output '{output}' is missing or misshapen.")
            loss = float(np.abs(found[output] - expected).max())
            loss = loss if np.isfinite(loss) else float(FLOAT16_MAX)  # JSON knows no infinity
            worst[output] = max(worst.get(output, (0.0, "")), (loss, name))
    figures = {f"max_abs {output}": loss for output, (loss, _) in worst.items()}
    figures |= {"photos": float(min(SEMANTICS_PHOTOS, len(case.samples))), "patterns": 1.0}
    output, (loss, name) = max(worst.items(), key=lambda item: item[1])
    passed = all(value <= limits.semantics_max_abs for value, _ in worst.values())
    seen = f"{figures['photos']:.0f} photos and a test pattern (limit {limits.semantics_max_abs:.2g})"
    found_loss = f"differs from torch by {loss:.2g} at most, in '{output}' of {name}, on"
    detail = (
        f"In float32, {_describe_sibling(case)} {found_loss if loss else 'equals torch exactly on'} {seen}."
    )
    return Gate(name="semantics", passed=passed, detail=detail, figures=figures)


def _check_identity(case: _Case) -> Gate:
    from benchmark.coreml_identity import compare_packages, find_foreign_weights, open_package
    from benchmark.coreml_quantizers import check_quantizers

    shipped = open_package(case.path)
    sibling = shipped if case.sibling == case.path else open_package(case.sibling)
    findings = compare_packages(shipped, sibling, exact=case.prepared is not None)
    if shipped.quantizers and not findings.breaches:
        images = [image for _, image in case.photos(SEMANTICS_PHOTOS)]
        findings.breaches += check_quantizers(
            shipped, sibling, case.sibling, case.artifact.input_name, images
        )
    network = case.prepared or case.network
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    foreign = find_foreign_weights(sibling, tensors)
    problems = []
    if hash_path(case.path) != case.artifact.sha256:
        problems.append("its bytes are not those its manifest describes")
    problems += findings.breaches + [f"{_describe_sibling(case)}: {problem}" for problem in foreign]
    figures = {
        "operations": float(findings.operations),
        "constants": float(findings.constants),
        "weights": float(findings.weights),
        "differences": float(len(problems)),
        "bytes_as_described": float(hash_path(case.path) == case.artifact.sha256),
    }
    if np.isfinite(findings.bound_share):
        figures["largest_share_of_bound"] = findings.bound_share
    hashes = ", ".join(f"{Path(name).name} {digest[:16]}…" for name, digest in shipped.hashes.items())
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        detail = f"{problems[0]}{more}; SHA-256: {hashes}."
    elif case.sibling == case.path:
        detail = (
            f"All {findings.weights} weights are torch's own, bit for bit, and none is missing; "
            f"SHA-256: {hashes}."
        )
    else:
        detail = (
            f"{findings.operations} operations and {findings.constants} constants are those of "
            f"{_describe_sibling(case)}, each of {findings.weights} weights within its format's bound; "
            f"the sibling's weights are torch's bit for bit; SHA-256: {hashes}."
        )
    return Gate(name="identity", passed=not problems, detail=detail, figures=figures)


@dataclass
class _Scan:
    """What a run's intermediate values look like, in fixed memory."""

    largest: float = 0.0
    largest_layer: str = ""
    broken: str = ""  # the first layer, in order of execution, with a NaN or infinity
    broken_layers: set[str] = field(default_factory=set)

    def watch(self, layer: Layer, outputs: tuple[torch.Tensor, ...]) -> None:
        """Called by the executor after each operation; float16 overflow has become an infinity by then."""
        for tensor in outputs:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            low, high = (float(v) for v in tensor.aminmax())
            peak = max(-low, high)
            if not np.isfinite(peak):
                self.broken_layers.add(layer.name)
                if not self.broken:
                    what = "NaN" if np.isnan(peak) else "infinity"
                    self.broken = f"{layer.op} '{layer.name}' ({what})"
            elif peak > self.largest and layer.op != "cast":  # a cast computes nothing
                self.largest, self.largest_layer = peak, f"{layer.op} '{layer.name}'"


def _check_end_to_end(case: _Case) -> Gate:
    """The shipped file in the precision it declares, on the photographs."""
    from benchmark.limits import limits_of
    from deploy.coreml_runners import artifact_computes_half
    from deploy.mil import load_package

    limits, half = load_gate_limits(case.artifact.recipe), artifact_computes_half(case.artifact)
    allowed_flips = limits_of(case.artifact, "mil-reference").flipped_permille
    model, scan, comparison = load_package(case.path), _Scan(), Comparison()
    lost = ""
    for name, image in case.photos():
        found = case.execute(model, image, watch=scan.watch)
        try:
            comparison.add(name, case.reference(image), found)
        except ConversionError as error:  # outputs missing or not finite: no figures, but the scan stands
            lost = lost or error.message
    figures = {
        "photos": float(len(case.samples)),
        "layers_not_finite": float(len(scan.broken_layers)),
        "largest_activation": scan.largest,
        "headroom": FLOAT16_MAX / max(scan.largest, 1e-9),
    }
    problems = [lost] if lost else []
    if scan.broken:
        problems.append(f"{scan.broken} is the first of {len(scan.broken_layers)} layers that overflow")
    if half and not figures["headroom"] >= limits.headroom:
        problems.append(
            f"{scan.largest_layer} reaches {scan.largest:.0f}, leaving a headroom of "
            f"{figures['headroom']:.2g} to 65504 (limit {limits.headroom:.2g})"
        )
    if comparison.pixels and not lost:
        problems += _judge_comparison(comparison, limits, allowed_flips, figures)
    if half and not problems:  # of a file that fails, the band says nothing
        figures |= _measure_band(case, model)
    detail = "; ".join(problems) + "." if problems else _describe_pass(scan, comparison, figures)
    return Gate(name="end to end", passed=not problems, detail=detail, figures=figures)


def _judge_comparison(
    comparison: Comparison, limits: GateLimits, allowed_flips: float, figures: dict[str, float]
) -> list[str]:
    problems = []
    for output in comparison.outputs():
        figures[f"max_abs {output.name}"] = output.max_abs
        if output.psnr_db is None:
            continue
        figures[f"psnr_db {output.name}"] = output.psnr_db
        if not output.psnr_db >= limits.psnr_db:
            problems.append(
                f"output '{output.name}' has a PSNR of {output.psnr_db:.1f} dB (limit {limits.psnr_db:.0f})"
            )
    figures["flipped_permille"] = comparison.flipped_permille
    figures["argmax_agreement"] = 1 - comparison.flipped_permille / 1000
    figures["mask_iou"] = comparison.mask_iou
    if not comparison.flipped_permille <= allowed_flips:
        problems.append(
            f"{comparison.flipped_permille:.2f} ‰ of the mask pixels flip (limit {allowed_flips:.2g} ‰)"
        )
    return problems


def _measure_band(case: _Case, model: MilModel) -> dict[str, float]:
    """How far the sums' own precision matters: float16 against float32 accumulation on one photo.

    Hardware accumulates somewhere between the two; the band says how much that can change.
    """
    _, image = next(iter(case.photos(1)))
    wide, narrow = case.execute(model, image), case.execute(model, image, accumulate="fp16")
    spread = max(float(np.abs(wide[name] - narrow[name]).max()) for name in wide)
    flips = float(np.mean(wide["fgbg"].argmax(1) != narrow["fgbg"].argmax(1)) * 1000)
    figures = {"accumulation_flipped_permille": flips}
    if np.isfinite(spread):
        figures["accumulation_max_abs"] = spread
    return figures


def _describe_pass(scan: _Scan, comparison: Comparison, figures: dict[str, float]) -> str:
    psnr = [value for name, value in figures.items() if name.startswith("psnr_db")]
    quality = f"PSNR at least {min(psnr):.1f} dB" if psnr else "all outputs equal"
    band = figures.get("accumulation_flipped_permille")
    tail = f"; float16 sums would flip {band:.2f} ‰" if band is not None else ""
    return (
        f"Nothing overflows (largest activation {scan.largest:.1f} at {scan.largest_layer}, headroom "
        f"{figures['headroom']:.0f}×), {quality}, {comparison.flipped_permille:.3f} ‰ of the mask "
        f"pixels flip{tail}."
    )
