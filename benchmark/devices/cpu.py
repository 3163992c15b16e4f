"""Device cpu: ONNX files in onnxruntime on this machine's processor, thread count explicit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.latency import ProfileSettings, Samples, build_measurement, load_average
from deploy.onnx import OnnxRunner
from nailcore.artifact import open_artifact
from nailcore.facts import Measurement, Skipped
from nailcore.measure import find_versions

NAME = "cpu"
KINDS = ("onnx",)


def find_obstacle() -> Skipped | None:
    """onnxruntime is a dependency: every machine has a CPU and it."""
    return None


def _time_run(runner: OnnxRunner, feed: dict[str, npt.NDArray[np.float32]]) -> tuple[float, float]:
    """(wall, CPU) milliseconds of one inference; CPU is this process's, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    runner.session.run(None, feed)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def profile(
    manifests: Sequence[Path], settings: ProfileSettings, progress: Callable[[int, int], None]
) -> list[Measurement]:
    """Graph-only latency: a float32 image is already in memory, logits are left in memory.

    Raises:
        ArtifactError: a file is missing, damaged or not the one its manifest describes.
    """
    before = load_average()
    rng = np.random.default_rng(0)
    entries = []
    for manifest in manifests:
        artifact, path = open_artifact(manifest)
        started = time.perf_counter()
        runner = OnnxRunner(artifact, path, threads=settings.threads)
        samples = Samples(load_ms=1e3 * (time.perf_counter() - started))
        shape = runner.session.get_inputs()[0].shape
        # The values do not matter to a dense network's speed (no value is denormal).
        feed = {artifact.input_name: rng.integers(0, 256, shape).astype(np.float32)}
        samples.first_ms = _time_run(runner, feed)[0]
        for _ in range(settings.warmup - 1):
            _time_run(runner, feed)
        entries.append((artifact, runner, feed, samples))
    for round_ in range(settings.rounds):
        # Start each round elsewhere, so that no artefact always follows the same neighbour.
        turn = round_ % max(1, len(entries))
        for _, runner, feed, samples in entries[turn:] + entries[:turn]:
            _time_run(runner, feed)  # caches are the neighbour's: one run unrecorded
            for _ in range(settings.runs_per_round):
                wall_ms, cpu_ms = _time_run(runner, feed)
                samples.wall_ms.append(wall_ms)
                samples.cpu_ms.append(cpu_ms)
        progress(round_ + 1, settings.rounds)
    return [
        build_measurement(
            artifact,
            samples,
            settings,
            device=NAME,
            runtime="onnxruntime CPU",
            versions=find_versions(("onnxruntime", "numpy")),
            device_settings=runner.settings,
            load_before=before,
        )
        for artifact, runner, _, samples in entries
    ]
