"""Device cpu: ONNX files in onnxruntime and TFLite files in LiteRT on this processor, threads explicit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmark.latency import ProfileSettings, Samples, build_measurement, load_average
from deploy.intake import check_intake
from deploy.onnx import OnnxRunner
from deploy.tflite import TfliteRunner
from nailcore.artifact import Artifact, open_artifact
from nailcore.facts import Measurement, Skipped
from nailcore.measure import find_versions

NAME = "cpu"
KINDS = ("onnx", "tflite")
_RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}


def find_obstacle() -> Skipped | None:
    """onnxruntime and LiteRT are dependencies: every machine has a CPU and them."""
    return None


@dataclass
class _Subject:
    """A file that is open, and the one thing that is timed: executing it on an image in memory."""

    artifact: Artifact
    runtime: str
    settings: dict[str, str]
    execute: Callable[[], object]
    samples: Samples = field(default_factory=Samples)


def _open(artifact: Artifact, path: Path, threads: int) -> _Subject:
    """Both runtimes leave their results in memory of their own until somebody reads them."""
    # The values do not matter to a dense network's speed (no value is denormal).
    rng = np.random.default_rng(0)
    if artifact.kind == "tflite":
        lite = TfliteRunner(artifact, path, threads=threads)
        image = rng.integers(0, 256, lite.session.input_shape).astype(np.float32)
        return _Subject(artifact, "LiteRT CPU", lite.settings, lambda: lite.session.invoke(image))
    onnx = OnnxRunner(artifact, path, threads=threads)
    shape = onnx.session.get_inputs()[0].shape
    feed = {artifact.input_name: rng.integers(0, 256, shape).astype(np.float32)}
    return _Subject(artifact, "onnxruntime CPU", onnx.settings, lambda: onnx.session.run(None, feed))


def _time_run(subject: _Subject) -> tuple[float, float]:
    """(wall, CPU) milliseconds of one inference; CPU is this process's, all threads together."""
    wall, cpu = time.perf_counter(), time.process_time()
    subject.execute()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def profile(
    manifests: Sequence[Path], settings: ProfileSettings, progress: Callable[[int, int], None]
) -> list[Measurement]:
    """Graph-only latency: a float32 image is already in memory, logits are left in memory.

    Raises:
        ArtifactError: a file is missing, damaged or not the one its manifest describes.
    """
    before = load_average()
    subjects = []
    for manifest in manifests:
        artifact, path = open_artifact(manifest)
        check_intake(artifact.kind, path)  # apart from the time it takes to load
        started = time.perf_counter()
        subject = _open(artifact, path, settings.threads)
        subject.samples.load_ms = 1e3 * (time.perf_counter() - started)
        subject.samples.first_ms = _time_run(subject)[0]
        for _ in range(settings.warmup - 1):
            _time_run(subject)
        subjects.append(subject)
    for round_ in range(settings.rounds):
        # Start each round elsewhere, so that no artefact always follows the same neighbour.
        turn = round_ % max(1, len(subjects))
        for subject in subjects[turn:] + subjects[:turn]:
            _time_run(subject)  # caches are the neighbour's: one run unrecorded
            for _ in range(settings.runs_per_round):
                wall_ms, cpu_ms = _time_run(subject)
                subject.samples.wall_ms.append(wall_ms)
                subject.samples.cpu_ms.append(cpu_ms)
        progress(round_ + 1, settings.rounds)
    return [
        build_measurement(
            subject.artifact,
            subject.samples,
            settings,
            device=NAME,
            runtime=subject.runtime,
            versions=find_versions((_RUNTIMES[subject.artifact.kind], "numpy")),
            device_settings=subject.settings,
            load_before=before,
        )
        for subject in subjects
    ]
