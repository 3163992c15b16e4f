"""A device that runs ONNX files in a time that their recipe tells; nothing is executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.latency import ProfileSettings
from nailcore.artifact import read_manifest
from nailcore.facts import ArtifactRef, Machine, Measurement, Skipped

NAME = "timer"
KINDS = ("onnx",)
CPU_MS = {"fp32": 10.0, "int8-slow": 10.4}  # any other: 6


def find_obstacle() -> Skipped | None:
    """Never in the way."""
    return None


def profile(
    manifests: Sequence[Path], settings: ProfileSettings, progress: Callable[[int, int], None]
) -> list[Measurement]:
    """Rows of the same figure over and over."""
    found = []
    for manifest in manifests:
        artifact = read_manifest(manifest)
        ms = CPU_MS.get(artifact.recipe, 6.0)
        samples = [ms] * settings.rounds * settings.runs_per_round
        found.append(
            Measurement(
                artifact=ArtifactRef.of(artifact),
                device=NAME,
                runtime="none",
                versions={},
                machine=Machine(cpu="Examplium", cores=1, memory_bytes=1, system="", python=""),
                settings={"threads": "1"},
                warmup=1,
                rounds=settings.rounds,
                wall_ms=samples,
                cpu_ms=samples,
                load_ms=1,
                first_ms=1,
                load_average_before=0,
                load_average_after=0,
                median_wall_ms=ms,
                p90_wall_ms=ms,
                median_cpu_ms=ms,
                p90_cpu_ms=ms,
            )
        )
    return found
