"""Device chromium: TF.js models in headless Chromium, wasm backend, CPU time from the browser itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.latency import ProfileSettings, Samples, build_measurement, load_average, percentile
from deploy.chromium import ChromiumSession, borrow_session, find_browser, return_session
from deploy.tfjs_graph import check_folder
from deploy.tfjs_runner import describe_backend, encode_pixels, read_bundle_versions
from nailcore.artifact import Artifact, open_artifact
from nailcore.errors import ArtifactError, MissingToolError
from nailcore.facts import Measurement, Skipped

NAME = "chromium"
KINDS = ("tfjs",)
LOAD_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 60.0  # per inference
# The browser counts CPU time in steps of 10 ms on Linux: a sample this long is good to 4 %.
MIN_CPU_SAMPLE_MS = 250.0


@dataclass
class _Subject:
    """One artefact under measurement."""

    artifact: Artifact
    url: str
    samples: Samples = field(default_factory=Samples)
    load_ms: list[float] = field(default_factory=list)  # one per round, as is the next
    first_ms: list[float] = field(default_factory=list)
    backend: dict[str, Any] = field(default_factory=dict)

    @property
    def pixels(self) -> str:
        """A fixed noise image; no layer of these networks is faster on one image than on another."""
        shape = self.artifact.made_by.config["variant"]
        size = (int(shape["height_px"]), int(shape["width_px"]), 3)
        return encode_pixels(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


def find_obstacle() -> Skipped | None:
    """Why nothing can be measured here, or None."""
    try:
        find_browser()
    except MissingToolError as error:
        return Skipped(what="latency in Chromium", reason=error.message, remedy=error.hint)
    return None


def profile(
    manifests: Sequence[Path], settings: ProfileSettings, progress: Callable[[int, int], None]
) -> list[Measurement]:
    """Measure all artefacts in one interleaved run: round by round, each in a fresh page.

    ``wall_ms`` is execute plus the data of every output, by ``performance.now`` in an isolated page;
    ``cpu_ms`` is the renderer processes' CPU time per inference, averaged over ``cpu_batch`` of them.

    Args:
        manifests: of TF.js artefacts.
        settings: rounds, warm-up, threads.
        progress: called with (pages done, pages in all).

    Raises:
        MissingToolError: no Chromium here.
        ArtifactError: an artefact is damaged, of another kind, or refused by TF.js.
    """
    load_before = load_average()
    session = borrow_session()
    try:
        subjects = [_open_subject(session, manifest) for manifest in manifests]
        total = len(subjects) * settings.rounds
        for done, subject in enumerate(_interleave(subjects, settings.rounds), start=1):
            _measure_round(session, subject, settings)
            progress(done, total)
        for subject in subjects:
            subject.samples.load_ms = percentile(subject.load_ms, 0.5)
            subject.samples.first_ms = percentile(subject.first_ms, 0.5)
        versions = {**session.versions, **read_bundle_versions()}
    finally:
        return_session(session)
    return [
        build_measurement(
            subject.artifact,
            subject.samples,
            settings,
            device=NAME,
            runtime=f"tfjs {subject.backend['backend']}",
            versions=versions,
            device_settings=describe_backend(subject.backend),
            load_before=load_before,
        )
        for subject in subjects
    ]


def _interleave(subjects: Sequence[_Subject], rounds: int) -> Iterator[_Subject]:
    """Every subject once per round, each round starting with another one: drift hits all alike."""
    for turn in range(rounds):
        start = turn % max(len(subjects), 1)
        yield from subjects[start:]
        yield from subjects[:start]


def _open_subject(session: ChromiumSession, manifest: Path) -> _Subject:
    artifact, path = open_artifact(manifest)
    if artifact.kind not in KINDS:
        raise ArtifactError(
            f"{artifact.label}: device {NAME} runs {', '.join(KINDS)} artefacts only.",
            hint="Use --device cpu for ONNX files.",
        )
    check_folder(path)
    return _Subject(artifact, f"{session.serve(path)}/model.json")


def _measure_round(session: ChromiumSession, subject: _Subject, settings: ProfileSettings) -> None:
    """Load, first run, warm-up, then one batch of samples, all in a page of its own."""
    page = session.open_page()
    artifact, samples, pixels = subject.artifact, subject.samples, subject.pixels
    shape = artifact.made_by.config["variant"]

    def run(count: int) -> list[float]:
        found: dict[str, Any] = session.call(
            page,
            "timeRuns",
            pixels,
            shape["height_px"],
            shape["width_px"],
            count,
            doing=f"timing {artifact.label}",
            timeout_s=RUN_TIMEOUT_S * count,
        )
        return [float(value) for value in found["wallMs"]]

    try:
        loaded = session.call(
            page,
            "timeLoad",
            subject.url,
            list(artifact.output_names.values()),
            settings.threads,
            doing=f"loading {artifact.label}",
            timeout_s=LOAD_TIMEOUT_S,
        )
        subject.backend = loaded["backend"]
        subject.load_ms.append(float(loaded["loadMs"]))
        subject.first_ms.extend(run(1))
        warm = run(settings.warmup)
        if not samples.cpu_ms:  # one batch size for the whole run
            enough = math.ceil(MIN_CPU_SAMPLE_MS / max(min(warm), 0.1))
            samples.cpu_batch = max(settings.runs_per_round, enough)
        before = session.read_renderer_cpu_s()
        samples.wall_ms.extend(run(samples.cpu_batch))
        samples.cpu_ms.append((session.read_renderer_cpu_s() - before) * 1e3 / samples.cpu_batch)
    finally:
        session.close_page(page)
