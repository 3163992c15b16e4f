"""The bundle a report is rendered from: current facts, and what was set aside with the reason."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from nailcore.artifact import Artifact
from nailcore.divergence_facts import BisectResult, ConversionStages
from nailcore.facts import (
    AccuracyResult,
    ImageSet,
    Measurement,
    ParityResult,
    PrePostResult,
    Skipped,
)
from nailcore.gate_facts import GateVerdict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportContext(_Part):
    """Who asked for the report, with what, and when; nothing here is measured."""

    command: str  # the command line as typed
    tool_version: str
    source_sha256: str = ""  # content hash of the tool's own source; stands in for a commit
    data: str  # the images in words, e.g. "photographs of the folder 'nails_cc0'"
    images: ImageSet | None = None  # the part measured now; accuracy on any other set is set aside
    created_at: str  # ISO 8601 with a time zone


class StaleFact(_Part):
    """A readable fact or file that does not speak of what is there now."""

    what: str
    file: str  # POSIX path below the output folder
    reason: str


class DamagedFile(_Part):
    """A file that exists and cannot be used."""

    file: str  # POSIX path below the output folder
    problem: str


class Overlay(_Part):
    """One photograph with the truth's outline and the prediction's fill, as JPEG bytes."""

    variant: str
    image: str
    nail_iou: float | None
    jpeg: bytes
    width_px: int
    height_px: int


class Heatmap(_Part):
    """Where a file differs from the network on one of the images it gets most wrong, as JPEG bytes."""

    label: str
    engine: str
    image: str
    flipped_permille: float
    jpeg: bytes
    width_px: int
    height_px: int


class ReportInput(_Part):
    """Everything `render_report` may show; every fact here belongs to a file of ``artifacts``."""

    context: ReportContext
    artifacts: tuple[Artifact, ...] = ()
    parity: tuple[ParityResult, ...] = ()
    conversions: tuple[ConversionStages, ...] = ()
    bisections: tuple[BisectResult, ...] = ()
    preposts: tuple[PrePostResult, ...] = ()
    gates: tuple[GateVerdict, ...] = ()
    latency: tuple[Measurement, ...] = ()
    accuracy: tuple[AccuracyResult, ...] = ()
    heatmaps: tuple[Heatmap, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    overlays_left_out: int = 0  # further images that have an overlay, left out for the file's size
    skipped: tuple[Skipped, ...] = ()
    stale: tuple[StaleFact, ...] = ()
    damaged: tuple[DamagedFile, ...] = ()
