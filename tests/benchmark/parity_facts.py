"""Made-up parity facts in full: engines, gates, heat-maps, stages, a divergence. Nothing is measured."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmark.comparison import Suspect
from benchmark.heatmaps import write_heatmaps
from benchmark.report import collect_facts, render_report, write_report
from model_zoo import find_variant
from nailcore.artifact import Artifact, read_manifest
from nailcore.divergence_facts import BisectResult, ConversionStages, Divergence, StageError, StagePair
from nailcore.facts import (
    ArtifactRef,
    Gate,
    ImageSet,
    Limits,
    ParityResult,
    PrePostResult,
    StageParity,
    write_fact,
)
from tests.benchmark.report_facts import (
    MACHINE,
    WHEN,
    draw_hand,
    fact_path,
    make_context,
    make_images,
    sha,
    write_out_tree,
)

GPU_ENGINES = ("chromium-webgl", "chromium-webgl-fp16", "firefox-wasm", "firefox-webgl", "webkit-wasm")


def find_artifact(root: Path, variant: str, kind: str, recipe: str) -> Artifact:
    """The manifest of a made-up file."""
    manifests = (read_manifest(path) for path in sorted((root / variant).glob("*.manifest.json")))
    return next(a for a in manifests if (a.kind, a.recipe) == (kind, recipe))


def add_engine(root: Path, usual: Path, engine: str, **values: object) -> Path:
    """Another engine's verdict, after the usual one's; returns the path of the fact."""
    fact = ParityResult.model_validate_json(usual.read_bytes())
    browser, _, backend = engine.partition("-")
    changed = fact.model_dump() | {
        "engine": engine,
        "runtime": f"tfjs {backend.partition('-')[0]}, {browser.capitalize()}",
        "software_gpu": "webgl" in engine,
        **values,
    }
    ref = fact.artifact
    path = root / "facts/parity" / f"{ref.variant}.{ref.kind}.{ref.recipe}.{engine}.json"
    write_fact(path, ParityResult.model_validate(changed))
    return path


def add_heatmaps(path: Path, permille: float) -> None:
    """Two images that differ, with their heat-maps beside the fact."""
    rng = np.random.default_rng(len(path.name))
    suspects = []
    for number in range(2):
        margin = np.asarray(rng.normal(-4, 1, (120, 160)), np.float32)
        margin[20:50, 40:62] += 8
        moved = np.asarray(margin + rng.normal(0, 0.2, margin.shape), np.float32)
        moved[18:50, 40:61] += 4 * (rng.random((32, 21)) > 0.3)
        image = np.ascontiguousarray(draw_hand(rng)[..., ::-1])
        suspects.append(Suspect(f"hand-0{number}", permille / (1 + number), image, margin, moved))
    worst = write_heatmaps(suspects, path.with_suffix(""))
    fact = ParityResult.model_validate_json(path.read_bytes())
    write_fact(path, fact.model_copy(update={"worst_images": worst, "flipped_permille": permille / 2}))


def make_gates(*, passed: bool) -> list[Gate]:
    """The three gates of a Core ML package."""
    return [
        Gate(
            name="semantics",
            passed=True,
            detail="The float32 sibling computes what torch computes on 3 photographs and a test pattern.",
            figures={"max_abs": 3.1e-6, "limit": 1e-4},
        ),
        Gate(
            name="identity",
            passed=passed,
            detail="Same operations and constants as the sibling; every weight within half a unit of float16."
            if passed
            else "The constant `clip_7_beta` is 1.0, the sibling's is 6.0.",
            figures={"operations": 212, "weights": 686254},
        ),
        Gate(name="end to end", passed=True, detail="No activation overflows.", figures={"psnr_db": 61.2}),
    ]


def add_coreml(root: Path, variant: str, images: ImageSet) -> None:
    """Both packages executed by the MIL reference; the fp16 one fails a gate."""
    for recipe in ("fp32", "fp16"):
        path = fact_path(root, "parity", variant, "coreml", recipe)
        usual = fact_path(root, "parity", variant, "onnx", "fp32")
        fact = ParityResult.model_validate_json(usual.read_bytes())
        failed = recipe == "fp16"
        changes = {
            "artifact": ArtifactRef.of(find_artifact(root, variant, "coreml", recipe)),
            "engine": "mil-reference",
            "runtime": "MIL reference",
            "gates": make_gates(passed=not failed),
            "status": "failed" if failed else "passed",
            "failures": ["gate 'identity': the constant clip_7_beta is 1.0, the sibling's is 6.0."]
            if failed
            else [],
        }
        write_fact(path, fact.model_copy(update=changes))


def add_stages(root: Path, variant: str, images: ImageSet) -> None:
    """A conversion step by step, a divergence, and the stages around the network."""
    artifact = find_artifact(root, variant, "tfjs", "fp16")
    weights = sha(find_variant(variant).weights)
    steps = ("torch", "torch, folded", "ONNX", "ONNX, simplified", "SavedModel", "TF.js, fp16")
    pairs = [
        StagePair(
            chain="tfjs",
            variant=variant,
            recipe="fp16",
            before=before,
            after=after,
            runtimes=("torch", "onnxruntime CPU"),
            outputs=[StageError(name="fgbg", max_abs=0.02 if last else 3e-6, psnr_db=None)],
            flipped_permille=0.3 if last else 0.0,
            mask_iou=0.9991 if last else 1.0,
            share=0.96 if last else 0.01,
            largest=last,
            images=10,
            measured_at=WHEN,
        )
        for before, after in pairwise(steps)
        for last in [after == steps[-1]]
    ]
    stages = ConversionStages(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=weights,
        images=images,
        versions={"torch": "2.13.0"},
        machine=MACHINE,
        pairs=pairs,
        measured_at=WHEN,
    )
    write_fact(root / "facts/stages" / f"{variant}.tfjs.fp16.json", stages)
    divergence = Divergence(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=weights,
        engine="chromium-wasm",
        runtime="tfjs wasm, Chromium",
        versions={},
        image="hand-01",
        layer="StatefulPartitionedCall/model/depthwise_12",
        op="DepthwiseConv2dNative",
        module="low.stage4.1.layers.3",
        torch_op="conv",
        file_attributes={"dilations": "[1, 1]"},
        torch_attributes={"dilations": "[2, 2]"},
        max_abs=1.31,
        relative=0.22,
        tolerance=1e-4,
        accumulated_max_abs=1.31,
        where="everywhere, all channels",
        channels=[],
        cause="dilation",
        detail="The file computes with dilation 1, the network with 2.",
        confirmed=True,
        residual=1e-7,
        layers_checked=41,
        layers=88,
        measured_at=WHEN,
    )
    found = BisectResult(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=weights,
        engine="chromium-wasm",
        images=images,
        found=divergence,
        measured_at=WHEN,
    )
    write_fact(root / "facts/divergence" / f"{variant}.tfjs.fp16.chromium-wasm.json", found)
    write_fact(root / "facts/prepost" / f"{variant}.json", make_prepost(variant, weights, images))


def make_prepost(variant: str, weights: str, images: ImageSet) -> PrePostResult:
    """One stage that passes, one for comparison, one that is not measured here."""
    limits = Limits(max_abs=None, flipped_permille=0.5, mean_abs=0.5, reason="an average over the letterbox")

    def make(stage: str, implementation: str, engine: str, **values: object) -> StageParity:
        return StageParity.model_validate(
            {
                "stage": stage,
                "implementation": implementation,
                "engine": engine,
                "variant": variant,
                "weights_sha256": weights,
                "versions": {},
                "machine": MACHINE,
                "images": images,
                "figures": {"max_abs_codes": 3.0, "mean_abs_codes": 0.11, "flipped_permille": 0.02},
                "limits": limits,
                "passed": True,
                "detail": "The same code values but for rounding.",
                "measured_at": WHEN,
                **values,
            }
        )

    stages = [
        make("preprocess", "nailtool JavaScript", "chromium"),
        make(
            "preprocess",
            "canvas drawImage (low)",
            "chromium",
            judged=False,
            passed=False,
            figures={"max_abs_codes": 91.0, "mean_abs_codes": 4.2, "flipped_permille": 6.1},
            cause="no antialiasing",
            detail="The browser skips pixels when it shrinks a photo.",
        ),
        make(
            "preprocess",
            "iOS dump",
            "ios",
            passed=None,
            figures={},
            detail="Not measured here: hand in a dump of the iOS app.",
        ),
    ]
    return PrePostResult(variant=variant, weights_sha256=weights, images=images, stages=stages)


def write_rich_tree(root: Path, *, names: tuple[str, ...] = (), synthetic: bool = True) -> ImageSet:
    """The usual made-up folder, with everything parity-check can add to it for its first variant."""
    images = write_out_tree(root, names=names, synthetic=synthetic)
    variant = names[0] if names else "nail55-480"
    first = images.model_copy(
        update={
            "name": f"first 2 of 10, {images.name}",
            "count": 2,
            "sha256": sha("first 2"),
            "part_of_sha256": images.sha256,
        }
    )
    for recipe in ("fp32", "fp16"):
        usual = fact_path(root, "parity", variant, "tfjs", recipe)
        full = {
            "boundary_iou": 0.99912,
            "contour_shift_px": 1.0,
            "blobs_appeared": 1,
            "blobs_vanished": 0,
            "lone_blob_px": 2,
            "finger_agreement": 0.9985,
            "direction_error_median_deg": 0.04,
            "direction_error_p90_deg": 0.13,
        }
        values = json.loads(usual.read_text()) | full
        usual.write_text(json.dumps(values))
        for engine in GPU_ENGINES:
            add_engine(root, usual, engine, images=first if "webgl" in engine else images)
        reason = "No WebGPU adapter here.\nInstall a driver with Vulkan."
        add_engine(root, usual, "chromium-webgpu", status="not executed", outputs=[], note=reason)
        if recipe == "fp16":
            add_heatmaps(usual, 0.31)
            add_heatmaps(fact_path(root, "parity", variant, "tfjs", recipe), 0.31)
    add_coreml(root, variant, images)
    add_stages(root, variant, images)
    return images


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_rich_tree(folder, synthetic="--photos" not in sys.argv)
    context = make_context(make_images(synthetic="--photos" not in sys.argv))
    write_report(folder / "report.html", render_report(collect_facts(folder, context)))
