"""Latency: settings, interleaving and the summary that every device shares."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from nailcore.artifact import Artifact
from nailcore.errors import NailtoolError
from nailcore.facts import ArtifactRef, Measurement
from nailcore.measure import describe_machine

MIN_SAMPLES = 10
# A round's median this far from the others' means that something else happened meanwhile.
MAX_DRIFT = 1.5


@dataclass(frozen=True)
class ProfileSettings:
    """How to measure. Rounds are interleaved over artefacts: a busy minute hits all of them alike."""

    rounds: int = 8
    warmup: int = 3  # unrecorded runs after each load, before the first sample
    runs_per_round: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("rounds", "runs_per_round", "threads"):
            if getattr(self, name) < 1:
                raise NailtoolError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.warmup < 1:
            raise NailtoolError(f"warmup is {self.warmup}; a latency without warm-up says nothing.")


@dataclass
class Samples:
    """Raw samples of one artefact, filled round by round; nothing is discarded."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    cpu_batch: int = 1
    load_ms: float = math.nan
    first_ms: float = math.nan


def load_average() -> float:
    """The machine's one-minute load average; 0 where the system keeps none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile, ``share`` in 0..1; raises NailtoolError on no values."""
    if not values:
        raise NailtoolError("No samples were taken.")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def find_invalidity(samples: Samples, runs_per_round: int) -> list[str]:
    """Reasons why a row must not be ranked; empty for a sound one."""
    reasons = []
    if len(samples.wall_ms) < MIN_SAMPLES:
        reasons.append(f"only {len(samples.wall_ms)} samples (at least {MIN_SAMPLES} needed)")
    # CPU time, not wall time: it moves little with the load, so a drift in it is the model's own
    # (thermal throttling, a debug build, another code path).
    third = max(1, len(samples.cpu_ms) // 3)
    if len(samples.cpu_ms) >= 3:
        first = percentile(samples.cpu_ms[:third], 0.5)
        last = percentile(samples.cpu_ms[-third:], 0.5)
        ratio = max(first, last) / max(min(first, last), 1e-9)
        if ratio > MAX_DRIFT:
            reasons.append(f"drift: CPU time went from {first:.1f} to {last:.1f} ms during the run")
    return reasons


def build_measurement(
    artifact: Artifact,
    samples: Samples,
    settings: ProfileSettings,
    *,
    device: str,
    runtime: str,
    versions: dict[str, str],
    device_settings: dict[str, str],
    load_before: float,
    software_gpu: bool = False,
) -> Measurement:
    """Summarise raw samples into a fact bound to the artefact's hash."""
    return Measurement(
        artifact=ArtifactRef.of(artifact),
        device=device,
        runtime=runtime,
        versions=versions,
        machine=describe_machine(),
        settings={
            "threads": str(settings.threads),
            "runs_per_round": str(settings.runs_per_round),
            **device_settings,
        },
        software_gpu=software_gpu,
        warmup=settings.warmup,
        rounds=settings.rounds,
        wall_ms=samples.wall_ms,
        cpu_ms=samples.cpu_ms,
        cpu_batch=samples.cpu_batch,
        load_ms=samples.load_ms,
        first_ms=samples.first_ms,
        load_average_before=load_before,
        load_average_after=load_average(),
        median_wall_ms=percentile(samples.wall_ms, 0.5),
        p90_wall_ms=percentile(samples.wall_ms, 0.9),
        median_cpu_ms=percentile(samples.cpu_ms, 0.5),
        p90_cpu_ms=percentile(samples.cpu_ms, 0.9),
        invalid=find_invalidity(samples, settings.runs_per_round),
    )
