"""Speed of a file against its fp32 sibling, paired by the rounds of one interleaved run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nailcore.facts import Interval, Measurement
from nailcore.gate_facts import SpeedRatio, SpeedRun

MIN_ROUNDS = 5  # fewer medians than that have no interval to speak of
RESAMPLES = 2000
MAX_DRIFT = 1.5  # of the ratio: then something happened to one of the two files alone


def compare_speed(run: SpeedRun, sha256: str, fp32_sha256: str) -> SpeedRatio | str:
    """The CPU-ms ratio of two files of one run; or the reason, in words, why there is none."""
    found, fp32 = (_find(run, sha) for sha in (sha256, fp32_sha256))
    if found is None or fp32 is None:
        return f"{'it' if found is None else 'its fp32'} was not timed in that run, or was built anew since"
    for who, measurement in (("", found), ("its fp32: ", fp32)):
        if measurement.software_gpu:
            return f"{who}a GPU played by the processor has no meaningful speed"
        if measurement.invalid:
            # Pairing does not mend it: a round takes seconds in a browser, and load changes within one.
            return f"{who}{'; '.join(measurement.invalid)}; measure again with --force"
    ours, theirs = _rounds(found), _rounds(fp32)
    if len(ours) != len(theirs) or len(ours) < MIN_ROUNDS:
        return f"{min(len(ours), len(theirs))} rounds in common (at least {MIN_ROUNDS} needed)"
    first, last = _find_drift(ours / theirs)
    if max(first, last) > MAX_DRIFT * min(first, last):
        return f"their ratio went from {first:.2f} to {last:.2f} during the run; measure again with --force"
    return SpeedRatio(
        device=run.device,
        runtime=found.runtime,
        threads=found.settings.get("threads", ""),
        machine=found.machine,
        cpu_ms=found.median_cpu_ms,
        fp32_cpu_ms=fp32.median_cpu_ms,
        ratio=bootstrap_ratio(ours, theirs),
        rounds=len(ours),
    )


def bootstrap_ratio(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], *, seed: int = 0
) -> Interval:
    """Median over rounds of ``ours / theirs`` with its 95 % interval, rounds being resampled.

    Both are (rounds,) in ms, above 0. A round that was slow for both has the ratio of any other.
    """
    ratios = ours / theirs
    picks = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Interval(value=float(np.median(ratios)), low=float(low), high=float(high))


def _find_drift(ratios: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Median of the first and of the last third; a busy minute that slows both files alike moves no ratio."""
    third = len(ratios) // 3
    return float(np.median(ratios[:third])), float(np.median(ratios[-third:]))


def _find(run: SpeedRun, sha256: str) -> Measurement | None:
    return next((m for m in run.measurements if m.artifact.sha256 == sha256), None)


def _rounds(measurement: Measurement) -> npt.NDArray[np.float64]:
    """(rounds,) median CPU-ms of each round; samples are in the order they were taken, as many per round."""
    samples = np.array(measurement.cpu_ms, np.float64)
    if measurement.rounds < 1 or len(samples) % measurement.rounds or not (samples > 0).all():
        return np.empty(0)
    return np.asarray(np.median(samples.reshape(measurement.rounds, -1), axis=1), np.float64)
