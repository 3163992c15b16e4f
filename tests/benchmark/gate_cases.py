"""Made-up facts for tests of the gate, the ladder and the report. Nothing here was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from benchmark.accuracy_drop import describe_drop
from benchmark.gate import judge_file
from benchmark.gate_rules import load_rules
from nailcore.artifact import Artifact, MadeBy
from nailcore.facts import (
    ArtifactRef,
    ImageDrop,
    ImageSet,
    Limits,
    Machine,
    Measurement,
    ParityResult,
)
from nailcore.gate_facts import GateVerdict, SpeedRun

MACHINE = Machine(cpu="Examplium 9000", cores=2, memory_bytes=8_000_000_000, system="Linux", python="3.11.9")
IMAGES = 13
FP32_BYTES = 9_800_000


def sha(text: str) -> str:
    """A stand-in hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_file(
    recipe: str = "int8-x",
    *,
    variant: str = "nail55-480",
    kind: str = "onnx",
    size: float = 0.3,
    integer: bool = True,
    rung: int = 2,
) -> Artifact:
    """A manifest; ``size`` is a share of fp32's bytes."""
    fp32 = recipe == "fp32"
    return Artifact(
        file=f"{variant}.{recipe}.{kind}",
        sha256=sha(f"{variant} {kind} {recipe}"),
        size_bytes=round(FP32_BYTES * (1 if fp32 else size)),
        kind=kind,
        variant=variant,
        recipe=recipe,
        input_name="image",
        input_layout="NCHW",
        output_names={"fgbg": "fgbg"},
        made_by=MadeBy(
            versions={},
            config={
                "recipe": {
                    "name": recipe,
                    "summary": f"what {recipe} does",
                    "rung": 0 if fp32 else rung,
                    "compute_dtype": "int8" if integer and not fp32 else "float32",
                }
            },
            parent="nail55.safetensors",
            parent_sha256=sha("weights"),
            cpu_s=1,
            wall_s=1,
            peak_rss_bytes=1,
        ),
    )


def make_parity(
    artifact: Artifact,
    *,
    lost: Sequence[float] = (0.1,),
    status: str = "passed",
    images: int = IMAGES,
    synthetic: bool = False,
    part_of: str = "",
) -> ParityResult:
    """A verdict on images of 1000 nail pixels each, of which the file loses ``lost`` per cent in turn."""
    drops = []
    for number in range(images):
        gone = round(10 * lost[number % len(lost)])
        reference = (900, 100, 100, 98_900)
        found = (900 - gone, 100, 100 + gone, 98_900)
        drops.append(ImageDrop(name=f"photo-{number:02d}", found=found, reference=reference))
    executed = status != "not executed"
    return ParityResult.model_validate(
        {
            "artifact": ArtifactRef.of(artifact),
            "weights_sha256": sha("weights"),
            "status": status,
            "runtime": "a runtime",
            "versions": {},
            "machine": MACHINE,
            "images": ImageSet(
                name="photographs",
                sha256=sha("photographs"),
                count=images,
                synthetic=synthetic,
                part_of_sha256=part_of,
            ),
            "limits": Limits(max_abs=None, flipped_permille=1.0, reason="made up"),
            "flipped_permille": 0.4 if executed else None,
            "engine": "an-engine",
            "accuracy": describe_drop(drops) if executed else None,
            "failures": [f"{artifact.label}: output 'fgbg' flips too much."] if status == "failed" else [],
            "note": "No engine here." if status == "not executed" else "",
        }
    )


def make_run(
    files: dict[Artifact, float] | Sequence[tuple[Artifact, float]],
    *,
    device: str = "cpu",
    rounds: int = 16,
    noise: float = 0.03,
    invalid: Sequence[str] = (),
) -> SpeedRun:
    """One run with a busy minute that hits all files alike; each file's CPU-ms are around its own figure."""
    pairs = list(files.items()) if isinstance(files, dict) else list(files)
    rng = np.random.default_rng(5)
    busy = 1 + 0.4 * (np.arange(rounds) > rounds // 2)  # the same for all files of a round
    measurements = []
    for artifact, cpu_ms in pairs:
        samples = np.repeat(cpu_ms * busy, 2) * (1 + noise * rng.standard_normal(2 * rounds))
        measurements.append(
            Measurement(
                artifact=ArtifactRef.of(artifact),
                device=device,
                runtime="a runtime",
                versions={},
                machine=MACHINE,
                settings={"threads": "1"},
                warmup=3,
                rounds=rounds,
                wall_ms=[float(v) for v in samples],
                cpu_ms=[float(v) for v in samples],
                load_ms=1,
                first_ms=1,
                load_average_before=0,
                load_average_after=0,
                median_wall_ms=float(np.median(samples)),
                p90_wall_ms=float(np.quantile(samples, 0.9)),
                median_cpu_ms=float(np.median(samples)),
                p90_cpu_ms=float(np.quantile(samples, 0.9)),
                invalid=list(invalid),
            )
        )
    return SpeedRun(device=device, measurements=measurements)


def judge(
    artifact: Artifact, *, lost: Sequence[float] = (0.1,), speed: float | None = 0.6, status: str = "passed"
) -> GateVerdict:
    """The verdict about a file that loses so much and takes so much of fp32's time (None: not timed)."""
    fp32 = make_file("fp32", variant=artifact.variant, kind=artifact.kind)
    runs = [] if speed is None else [make_run([(fp32, 40.0), (artifact, 40.0 * speed)])]
    parity = make_parity(artifact, lost=lost, status=status)
    reference = None if artifact.recipe == "fp32" else fp32
    return judge_file(artifact, reference, parity, load_rules(), runs=runs)


LADDER = (  # recipe, rung, share of bytes, per cent lost, share of CPU-ms, integer, status
    ("fp32", 0, 1.0, (0.0,), 1.0, False, "passed"),
    ("int8-per-tensor", 1, 0.27, (60.0, 80.0), 0.59, True, "failed"),
    ("int8-per-channel", 2, 0.3, (0.2, 0.6, -0.1), 0.6, True, "passed"),
    ("int8-equalized", 3, 0.3, (0.1, 0.2), 0.61, True, "passed"),
    ("int8-slow", 4, 0.3, (0.1,), 1.02, True, "passed"),
)


def make_ladder(variant: str = "nail55-480", kind: str = "onnx", *, timed: bool = True) -> list[GateVerdict]:
    """Verdicts of a whole ladder, the rungs that hurt among them."""
    files = {
        recipe: make_file(recipe, variant=variant, kind=kind, size=size, integer=integer, rung=rung)
        for recipe, rung, size, _, _, integer, _ in LADDER
    }
    run = make_run([(files[recipe], 40.0 * share) for recipe, _, _, _, share, _, _ in LADDER])
    return [
        judge_file(
            files[recipe],
            None if recipe == "fp32" else files["fp32"],
            make_parity(files[recipe], lost=lost, status=status),
            load_rules(),
            runs=[run] if timed else [],
        )
        for recipe, _, _, lost, _, _, status in LADDER
    ]
