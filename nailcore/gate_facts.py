"""Facts about what a file's precision bought and cost, and whether it may ship; bound to hashes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from nailcore.facts import AccuracyDrop, ArtifactRef, Fact, ImageSet, Interval, Machine, Measurement

Bought = Literal["size", "compute", "both", "neither"]
Decision = Literal["shippable", "not shippable", "undecided"]


class GateRules(Fact):
    """What a file must keep to be marked shippable, and from when on it bought something."""

    max_drop_points: float = Field(ge=0)  # nail IoU: the upper end of the paired 95 % interval, at most
    min_images: int = Field(ge=1)  # fewer give no interval that means anything
    bought_size_ratio: float = Field(gt=0)  # of its fp32's bytes, at most: then it bought size
    bought_cpu_ratio: float = Field(gt=0)  # upper end of the CPU-ms ratio, at most: then it bought compute
    slower_cpu_ratio: float = Field(gt=0)  # lower end beyond it: a file that only stores is slower
    reason: str


class SpeedRun(Fact):
    """One interleaved latency run over files of one variant and target: the rows may be paired by round."""

    device: str
    measurements: list[Measurement]


class SpeedRatio(Fact):
    """CPU time of a file against its fp32 sibling, round by round of one interleaved run."""

    device: str
    runtime: str
    threads: str
    machine: Machine
    cpu_ms: float  # median
    fp32_cpu_ms: float
    ratio: Interval  # median over rounds of the rounds' ratios; 95 % bootstrap over rounds
    rounds: int


class Unmeasured(Fact):
    """A speed that is not known, and why; never taken for good or bad."""

    device: str
    reason: str
    asked_for: bool  # the device runs such files and was named: without the figure there is no verdict


class GateVerdict(Fact):
    """May this file ship, what did it buy, and from which figures does that follow?"""

    artifact: ArtifactRef
    fp32: ArtifactRef | None  # what size and speed are compared with; None: it is fp32, or there is none
    weights_sha256: str  # of the float network its accuracy is compared with; "": not known
    summary: str  # of the recipe
    rung: int  # of the recipe; 0: not on the ladder
    integer: bool  # its arithmetic
    decision: Decision
    refusals: list[str]  # why it may not ship, one sentence each
    unknowns: list[str]  # what keeps a verdict open
    notes: list[str]  # said and not judged
    bought: Bought | None  # None: it is fp32, or has no fp32 beside it
    size_ratio: float | None
    speed: list[SpeedRatio]  # per device
    unmeasured: list[Unmeasured]
    parity: Literal["passed", "failed", "not executed", "unknown"]
    engine: str
    images: ImageSet | None
    flipped_permille: float | None
    accuracy: AccuracyDrop | None
    rules: GateRules
    judged_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def bought_text(self) -> str:
        """The label, with what it does not rest on: ``size (speed not measured here)``."""
        if self.bought is None:
            return "–"
        return self.bought if self.speed else f"{self.bought} (speed not measured here)"


class Ladder(Fact):
    """Verdicts of several files side by side, as ``nailtool ladder`` prints and saves them."""

    verdicts: list[GateVerdict]
    missing: tuple[str, ...] = ()  # files that were asked for and have no verdict: ``nail55-480 onnx int8-x``
    tool_version: str

    def without_images(self) -> Ladder:
        """The same without the counts of single images, to be kept in a repository."""
        slim = [
            verdict.model_copy(
                update={
                    "accuracy": verdict.accuracy and verdict.accuracy.model_copy(update={"per_image": []})
                }
            )
            for verdict in self.verdicts
        ]
        return self.model_copy(update={"verdicts": slim})
