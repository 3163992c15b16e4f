"""A device that measures nothing real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.latency import ProfileSettings
from nailcore.artifact import read_manifest
from nailcore.facts import ArtifactRef, Machine, Measurement, Skipped

NAME = "cpu"
KINDS = ("onnx",)


def find_obstacle() -> Skipped | None:
    """Always in the way."""
    return Skipped(what="latency on cpu", reason="It is a fake.", remedy="Use a real one.")


def profile(
    manifests: Sequence[Path], settings: ProfileSettings, progress: Callable[[int, int], None]
) -> list[Measurement]:
    """Rows of nothing; a file named ``busy`` beside the manifests makes them invalid."""
    return [
        Measurement(
            artifact=ArtifactRef.of(read_manifest(manifest)),
            device=NAME,
            runtime="none",
            versions={},
            machine=Machine(cpu="", cores=1, memory_bytes=1, system="", python=""),
            settings={},
            warmup=0,
            rounds=settings.rounds,
            wall_ms=[1.0],
            cpu_ms=[1.0],
            load_ms=1.0,
            first_ms=1.0,
            load_average_before=0.0,
            load_average_after=0.0,
            median_wall_ms=1.0,
            p90_wall_ms=1.0,
            median_cpu_ms=1.0,
            p90_cpu_ms=1.0,
            invalid=["busy"] if (manifest.parent / "busy").exists() else [],
        )
        for manifest in manifests
    ]
