"""What an ablation found: every cell, every gain, and all it takes to do it again."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from nailcore.facts import Fact, ImageSet, Interval, Machine


class AblationCell(Fact):
    """One choice of network and loss, trained once per seed with the same budget."""

    network: str  # "cascade", "single branch"
    loss: str  # "lmp", "weighted"
    seeds: tuple[int, ...]
    miou_by_seed: tuple[float, ...]
    nail_iou_by_seed: tuple[float, ...]
    miou: Interval  # pooled over seeds and images
    nail_iou: Interval
    boundary_f: Interval


class AblationGain(Fact):
    """What one choice gains over another, in mIoU, with everything else equal; images resampled in pairs."""

    better: str  # the choice expected ahead: "lmp", "cascade"
    worse: str
    given: str  # what is held equal: "cascade", "lmp", or "all" when averaged over the other choice
    miou: Interval  # difference, 0..1
    nail_iou: Interval


class AblationReport(Fact):
    """{LMP, 20 ×} × {cascade, single branch} at the same budget: the left half of the paper's Figure 3."""

    variant: str
    steps: int
    batch: int
    crop_px: int
    init: str
    init_sha256: str
    config: dict[str, object]  # without seed and loss
    weights_sha256: dict[str, tuple[str, ...]]  # "cascade lmp" -> by seed
    images: ImageSet  # held out
    trained_on: ImageSet
    machine: Machine
    versions: dict[str, str]
    cells: list[AblationCell]
    gains: list[AblationGain]
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
