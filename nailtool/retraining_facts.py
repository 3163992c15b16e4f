"""What a retraining made, as facts and as a table for the model card."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from nailcore.facts import AccuracyResult, Fact, ImageSet, Interval, Machine


class StageFigures(Fact):
    """How one stage's weights do on one set of held-out images."""

    variant: str
    images: ImageSet
    miou: Interval
    nail_iou: Interval
    boundary_f: Interval
    nail_recall: Interval | None = None
    finger_accuracy: Interval | None = None
    direction_error_median_deg: Interval | None = None

    @classmethod
    def of(cls, accuracy: AccuracyResult) -> StageFigures:
        """The figures without the images one by one."""
        return cls.model_validate(accuracy.model_dump(include=set(cls.model_fields)))


class StageFacts(Fact):
    """One training of a plan."""

    folder: str  # below OUT
    weights: str
    sha256: str
    steps: int
    init: str
    init_sha256: str
    trained_on: ImageSet
    figures: list[StageFigures]


class RetrainingResult(Fact):
    """What ``nailtool retrain`` made."""

    plan: dict[str, object]
    smoke: bool  # two steps a stage: the figures mean nothing
    folds: int  # 0: one training, measured on the written split
    machine_labels: float | None = None  # guesses of at least this confidence were learnt from
    stages: list[StageFacts]
    pooled: list[StageFigures]  # over the held-out parts of all folds
    machine: Machine
    versions: dict[str, str]
    finished_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


HEAD = "| images | mIoU | nail IoU | boundary F | found | right finger | direction, median |"


def render_markdown(result: RetrainingResult) -> str:
    """The stages and, with folds, the pooled figures; points with 95 % intervals."""
    parts = [f"# Retraining by the plan `{result.plan['name']}`\n"]
    if result.pooled:
        parts.append(f"## {result.folds} folds, pooled\n\n{render_pooled(result)}")
    parts.append(f"## Stages\n\n{render_stages(result)}")
    return "\n".join(parts)


def render_pooled(result: RetrainingResult) -> str:
    """Every photograph measured by the one training that did not see it."""
    stages = {stage.folder.rpartition("/")[2]: stage.steps for stage in result.stages}
    steps = ", ".join(f"{name} ({steps} steps)" for name, steps in stages.items())
    lines = [*_describe(result), f"{result.folds} folds of these stages: {steps}.", ""]
    lines += [f"| variant {HEAD}", "|---" * 8 + "|"]
    return "\n".join([*lines, *(f"| {f.variant} | {_row(f)}" for f in result.pooled)]) + "\n"


def render_stages(result: RetrainingResult) -> str:
    """Every training of the plan with what its weights reach."""
    lines = [*_describe(result), f"| stage | steps | from | SHA-256 | variant {HEAD}", "|---" * 12 + "|"]
    for stage in result.stages:
        before = f"`{stage.init_sha256[:12]}…`" if stage.init_sha256 else stage.init
        facts = f"| {stage.folder} | {stage.steps} | {before} | `{stage.sha256[:12]}…` "
        lines += [f"{facts}| {figures.variant} | {_row(figures)}" for figures in stage.figures]
    return "\n".join(lines) + "\n"


def _describe(result: RetrainingResult) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}; {versions}.", ""]
    if result.smoke:
        lines += ["**A smoke run: two steps a stage. The figures mean nothing.**", ""]
    return lines


def _row(figures: StageFigures) -> str:
    def points(interval: Interval | None, scale: float = 100) -> str:
        return "–" if interval is None else interval.tell(scale=scale)

    kind = "rendered" if figures.images.synthetic else "photographs"
    shares = (
        figures.miou,
        figures.nail_iou,
        figures.boundary_f,
        figures.nail_recall,
        figures.finger_accuracy,
    )
    cells = [f"{figures.images.count} {kind}", *map(points, shares)]
    return " | ".join([*cells, points(figures.direction_error_median_deg, 1)]) + " |"
