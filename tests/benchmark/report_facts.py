"""Made-up facts for tests of the report: an output folder with 6 variants × 5 files and drawn hands.

No figure here was measured. ``python -m tests.benchmark.report_facts FOLDER`` writes a folder and its
report, to be looked at in a browser.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.report import ReportContext
from model_zoo import find_variant, load_variants
from nailcore.artifact import Artifact, MadeBy, artifact_path, write_manifest
from nailcore.facts import (
    AccuracyResult,
    ArtifactRef,
    Check,
    ImageAccuracy,
    ImageSet,
    Interval,
    Limits,
    Machine,
    Measurement,
    OutputParity,
    ParityResult,
    Skipped,
    write_fact,
)
from nailcore.variant import OUTPUTS, Variant

FILES = (("onnx", "fp32"), ("tfjs", "fp32"), ("tfjs", "fp16"), ("coreml", "fp32"), ("coreml", "fp16"))
SUFFIXES = {"onnx": ".onnx", "tfjs": ".tfjs", "coreml": ".mlpackage"}
ENGINES = {"onnx": "onnxruntime", "tfjs": "chromium-wasm", "coreml": "mil-reference"}
RUNTIMES = {"onnx": "onnxruntime CPU", "tfjs": "tfjs wasm, Chromium", "coreml": "not executed"}
CPU_MS = {"onnx": (47.0, 38.0), "tfjs": (215.0, 188.0)}  # at 480 px, for 55 and 43 layers
WHEN = "2031-02-03T04:05:06+00:00"
MACHINE = Machine(
    cpu="Examplium 9000 @ 2.00GHz",
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux 6.1 x86_64",
    python="3.11.9",
)


def sha(text: str) -> str:
    """A stand-in hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_context(images: ImageSet | None = None) -> ReportContext:
    """A context as the front door would make it."""
    return ReportContext(
        command="nailtool report --out artifacts",
        tool_version="9.9.9",
        source_sha256=sha("source"),
        data="the embedded set of rendered hands",
        images=images,
        created_at=WHEN,
    )


def make_images(*, synthetic: bool) -> ImageSet:
    """The image set all facts of a folder share."""
    name = "embedded synthetic hands" if synthetic else "folder of photographs"
    return ImageSet(name=name, sha256=sha(name), count=10, synthetic=synthetic)


def make_artifact(root: Path, variant: Variant, kind: str, recipe: str) -> Artifact:
    """A file of a few bytes with the manifest of a real one."""
    path = artifact_path(root, variant.name, recipe, SUFFIXES[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())
    from_onnx = kind == "tfjs"
    onnx_name = f"{variant.name}.fp32.onnx"
    artifact = Artifact(
        file=path.name,
        sha256=sha(path.name),
        size_bytes=round((9_620_000 if variant.encoder_layers == 55 else 3_480_000) * int(recipe[2:]) / 32),
        kind=kind,
        variant=variant.name,
        recipe=recipe,
        input_name="image",
        input_layout="NHWC" if from_onnx else "NCHW",
        output_names={o.name: o.name for o in OUTPUTS},
        structure={"parameters": 2_401_718 if variant.encoder_layers == 55 else 868_214},
        made_by=MadeBy(
            versions={"torch": "2.13.0", "onnx": "1.22.0"} if kind == "onnx" else {kind: "4.22.0"},
            config={"variant": variant.model_dump(mode="json"), "recipe": {"name": recipe}},
            parent=onnx_name if from_onnx else f"{variant.weights}.safetensors",
            parent_sha256=sha(onnx_name if from_onnx else variant.weights),
            cpu_s=12.25,
            wall_s=8.5,
            peak_rss_bytes=1_730_000_000,
        ),
    )
    write_manifest(path, artifact)
    return artifact


def make_parity(artifact: Artifact, images: ImageSet, rng: np.random.Generator) -> ParityResult:
    """Passed for what is executed; structural checks alone for Core ML."""
    fp32 = artifact.recipe == "fp32"
    shared = {
        "artifact": ArtifactRef.of(artifact),
        "weights_sha256": sha(find_variant(artifact.variant).weights),
        "engine": ENGINES[artifact.kind],
        "heads_trained": ("fgbg",),
        "runtime": RUNTIMES[artifact.kind],
        "versions": {} if artifact.kind == "coreml" else {"torch": "2.13.0"},
        "machine": MACHINE,
        "images": images,
        "limits": Limits(
            max_abs=1e-4 if fp32 else None,
            flipped_permille=1.0,
            reason="fp32 keeps every logit; fp16 storage is judged by the mask",
        ),
        "measured_at": WHEN,
    }
    if artifact.kind == "coreml":
        names = ("outputs", "image input", "precision", "spec version", "weights finite")
        checks = [Check(name=n, passed=True, detail="as declared") for n in names]
        return ParityResult(
            **shared, status="not executed", checks=checks, note="Core ML executes on Apple systems only."
        )
    scale = 2e-7 if fp32 else 2e-3
    outputs = [
        OutputParity(
            name=o.name,
            max_abs=float(scale * rng.uniform(1, 90)),
            psnr_db=float(rng.uniform(118, 140) if fp32 else rng.uniform(58, 70)),
            cosine=0.9999999,
        )
        for o in OUTPUTS
    ]
    flipped = 0.0 if fp32 else float(rng.uniform(0.01, 0.3))
    return ParityResult(
        **shared,
        status="passed",
        outputs=outputs,
        flipped_permille=flipped,
        worst_image_flipped_permille=flipped * 3.4,
        worst_image="hand-07",
        mask_iou=1.0 - flipped / 900,
    )


def make_latency(artifact: Artifact, variant: Variant, rng: np.random.Generator) -> Measurement:
    """Thirty samples around a time that grows with the input, with a slow tail."""
    base = CPU_MS[artifact.kind][variant.encoder_layers == 43] * (variant.height_px / 480) ** 1.9
    wall = base * (1.04 + rng.gamma(1.2, 0.04, 30))
    cpu = base * (1 + rng.normal(0, 0.008, 15))
    return Measurement(
        artifact=ArtifactRef.of(artifact),
        device="cpu" if artifact.kind == "onnx" else "chromium",
        runtime=RUNTIMES[artifact.kind],
        versions={"onnxruntime" if artifact.kind == "onnx" else "tfjs": "4.22.0"},
        machine=MACHINE,
        settings={"threads": "1", "spinning": "off", "isolation": "on"},
        warmup=3,
        rounds=15,
        wall_ms=[float(v) for v in wall],
        cpu_ms=[float(v) for v in cpu],
        cpu_batch=2,
        load_ms=float(base * 2.2),
        first_ms=float(base * 3.1),
        load_average_before=0.84,
        load_average_after=1.31,
        median_wall_ms=float(np.median(wall)),
        p90_wall_ms=float(np.quantile(wall, 0.9)),
        median_cpu_ms=float(np.median(cpu)),
        p90_cpu_ms=float(np.quantile(cpu, 0.9)),
        measured_at=WHEN,
    )


def draw_hand(rng: np.random.Generator, height_px: int = 480, width_px: int = 640) -> npt.NDArray[np.uint8]:
    """A cartoon hand with outlined nails, (H, W, 3) BGR."""
    import cv2

    shades = rng.integers(90, 220, 3)
    image = np.full((height_px, width_px, 3), shades, np.uint8)
    skin = tuple(int(v) for v in rng.integers((110, 150, 190), (150, 190, 240)))
    cv2.ellipse(image, (width_px // 2, height_px), (190, 210), 0, 0, 360, skin, -1, cv2.LINE_AA)
    for finger in range(4):
        x = width_px // 2 - 135 + finger * 90
        top = int(rng.integers(60, 140))
        cv2.line(image, (x, height_px - 120), (x, top), skin, 62, cv2.LINE_AA)
        polish = tuple(int(v) for v in rng.integers(40, 255, 3))
        cv2.ellipse(image, (x, top), (19, 29), 0, 0, 360, polish, -1, cv2.LINE_AA)
        cv2.ellipse(image, (x, top), (20, 30), 0, 0, 360, (255, 255, 255), 2, cv2.LINE_AA)
    return image


def make_accuracy(root: Path, variant: Variant, images: ImageSet, rng: np.random.Generator) -> AccuracyResult:
    """Accuracy that grows with the input, and one overlay per image."""
    import cv2

    miou = 0.845 + 0.045 * (variant.height_px - 288) / 192 - (0.022 if variant.encoder_layers == 43 else 0)
    records = []
    for number in range(images.count):
        name = f"hand-{number:02d}"
        overlay = root / "facts/accuracy" / variant.name / f"{name}.jpg"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_bytes(cv2.imencode(".jpg", draw_hand(rng))[1].tobytes())
        iou = float(np.clip(rng.normal(2 * miou - 0.99, 0.08), 0, 0.95))
        records.append(ImageAccuracy(name=name, tp=9, fp=1, fn=2, tn=88, nail_iou=iou, overlay=overlay.name))
    return AccuracyResult(
        variant=variant.name,
        weights=f"{variant.weights}.safetensors",
        weights_sha256=sha(variant.weights),
        runtime="torch CPU",
        versions={"torch": "2.13.0"},
        machine=MACHINE,
        images=images,
        output_stride=4,
        miou=Interval(value=miou, low=miou - 0.017, high=miou + 0.012),
        nail_iou=Interval(value=2 * miou - 0.99, low=2 * miou - 1.03, high=2 * miou - 0.965),
        boundary_f=Interval(value=miou - 0.1, low=miou - 0.14, high=miou - 0.07),
        per_image=records,
        measured_at=WHEN,
    )


def fact_path(root: Path, what: str, variant: str, kind: str, recipe: str) -> Path:
    """Where the layout keeps a fact; ``what`` is ``parity`` (of the usual engine) or ``latency/<device>``."""
    engine = f".{ENGINES[kind]}" if what == "parity" else ""
    return root / "facts" / what / f"{variant}.{kind}.{recipe}{engine}.json"


def write_out_tree(root: Path, *, synthetic: bool = True, names: tuple[str, ...] = ()) -> ImageSet:
    """Write manifests, facts and overlays of all variants (or of ``names``); returns the image set."""
    rng = np.random.default_rng(7)
    images = make_images(synthetic=synthetic)
    for variant in load_variants().values():
        if names and variant.name not in names:
            continue
        accuracy = make_accuracy(root, variant, images, rng)
        write_fact(root / "facts/accuracy" / f"{variant.name}.json", accuracy)
        for kind, recipe in FILES:
            artifact = make_artifact(root, variant, kind, recipe)
            parity = make_parity(artifact, images, rng)
            write_fact(fact_path(root, "parity", variant.name, kind, recipe), parity)
            if kind in CPU_MS:
                fact = make_latency(artifact, variant, rng)
                write_fact(fact_path(root, f"latency/{fact.device}", variant.name, kind, recipe), fact)
    skipped = Skipped(
        what="Chromium with two threads",
        reason="The server was not isolated.",
        remedy="Serve with COOP and COEP headers.",
    )
    write_fact(root / "facts/skipped/chromium-threads.json", skipped)
    return images


if __name__ == "__main__":
    from benchmark.report import collect_facts, render_report, write_report

    folder = Path(sys.argv[1])
    images_written = write_out_tree(folder, synthetic="--photos" not in sys.argv)
    report = collect_facts(folder, make_context(images_written))
    write_report(folder / "report.html", render_report(report))
