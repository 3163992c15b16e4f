"""Choices of a network compared: each trained with the same budget and seeds, accuracy beside CPU-ms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from benchmark.ablation import compare_counts, count_edges, count_images, read_known, sum_up_sets
from benchmark.accuracy import evaluate_accuracy
from nailcore.data.folder import Dataset
from nailcore.facts import AccuracyResult, Fact, ImageSet, Interval, Machine, write_fact
from nailcore.measure import describe_machine, find_versions
from nailcore.metrics import bootstrap
from nailcore.storage import hash_file
from nailcore.train import FREE_SETTINGS, StepReport, TrainConfig, run_training
from nailcore.variant import Variant

TOOLS = ("torch", "lightning-fabric", "onnxruntime", "numpy", "opencv-python-headless")
Report = Callable[[str, StepReport], None]


@dataclass(frozen=True)
class Choice:
    """One network to train; ``name`` is its folder and its row."""

    name: str
    variant: Variant
    init: Path | None


@dataclass(frozen=True)
class Budget:
    """What all choices have in common."""

    sources: tuple[Dataset, ...]
    held_out: Dataset  # its held-out part is what everything is measured on
    config: TrainConfig  # without the seed
    seeds: int
    out: Path


class Cost(Fact):
    """What one choice costs, one thread: medians of one inference."""

    cpu_ms: float  # onnxruntime
    size_bytes: int  # of the fp32 ONNX file
    samples: int
    tfjs_wasm_cpu_ms: float | None = None  # None: no browser was found
    tfjs_wasm_samples: int = 0
    tfjs_versions: dict[str, str] = Field(default_factory=dict)


class ChoiceRow(Fact):
    """One choice, trained once per seed."""

    name: str
    encoder: str
    encoder_layers: int
    fusion_width: int
    fusion_conv: str
    init: str
    init_sha256: str
    weights_sha256: tuple[str, ...]  # by seed
    miou_by_seed: tuple[float, ...]
    nail_iou_by_seed: tuple[float, ...]
    miou: Interval  # over images, seeds pooled
    nail_iou: Interval
    boundary_f: Interval
    gain: Interval  # in nail IoU over the first choice; images and seeds resampled, images in pairs
    cost: Cost


class ChoicesResult(Fact):
    """Accuracy against cost; the first row is what the others are compared with."""

    title: str
    size_px: tuple[int, int]  # height, width
    seeds: int
    config: dict[str, object]
    images: ImageSet  # held out
    trained_on: ImageSet
    rows: list[ChoiceRow]
    machine: Machine
    versions: dict[str, str]
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def run_choices(
    title: str,
    choices: Sequence[Choice],
    budget: Budget,
    find_costs: Callable[[list[Variant], Path], list[Cost]],
    report: Report | None = None,
) -> ChoicesResult:
    """Train and measure every choice, going on where an interrupted run stopped.

    Raises:
        DataError, WeightsError, NailtoolError: see ``run_training``.
    """
    found: dict[str, list[AccuracyResult]] = {choice.name: [] for choice in choices}
    for seed in range(budget.seeds):  # outside, so that an interrupted run has whole rounds
        for choice in choices:
            found[choice.name].append(_train(choice, budget, seed, report))
    costs = find_costs([choice.variant for choice in choices], budget.out)
    first = choices[0]
    return ChoicesResult(
        title=title,
        size_px=(first.variant.height_px, first.variant.width_px),
        seeds=budget.seeds,
        config=budget.config.model_dump(mode="json", exclude={*FREE_SETTINGS, "seed"}),
        images=budget.held_out.describe("held-out"),
        trained_on=sum_up_sets([source.describe("train") for source in budget.sources]),
        rows=[
            _describe(choice, found[choice.name], found[first.name], cost)
            for choice, cost in zip(choices, costs, strict=True)
        ],
        machine=describe_machine(),
        versions=find_versions(TOOLS),
    )


def _train(choice: Choice, budget: Budget, seed: int, report: Report | None) -> AccuracyResult:
    name = f"{choice.name}-seed{seed}"
    folder = budget.out / name
    weights = run_training(
        choice.variant,
        budget.sources,
        budget.config.model_copy(update={"seed": seed}),
        folder,
        init=choice.init,
        report=None if report is None else lambda step: report(name, step),
    )
    known = read_known(folder / "accuracy.json", weights, budget.held_out)
    if known is not None and known.variant == choice.variant.name:
        return known
    result = evaluate_accuracy(choice.variant, weights, budget.held_out, "held-out", folder / "overlays")
    write_fact(folder / "accuracy.json", result)
    return result


def _describe(
    choice: Choice, results: Sequence[AccuracyResult], first: Sequence[AccuracyResult], cost: Cost
) -> ChoiceRow:
    counts = [count_images(result) for result in results]
    edges = [count_edges(result) for result in results]
    gain = Interval(value=0, low=0, high=0)
    if results is not first:
        _, gain = compare_counts([counts], [[count_images(result) for result in first]])
    return ChoiceRow(
        name=choice.name,
        encoder=choice.variant.encoder,
        encoder_layers=choice.variant.encoder_layers,
        fusion_width=choice.variant.fusion_width,
        fusion_conv=choice.variant.fusion_conv,
        init=choice.init.name if choice.init else "random",
        init_sha256=hash_file(choice.init) if choice.init else "",
        weights_sha256=tuple(result.weights_sha256 for result in results),
        miou_by_seed=tuple(result.miou.value for result in results),
        nail_iou_by_seed=tuple(result.nail_iou.value for result in results),
        miou=bootstrap("miou", sum(counts[1:], counts[0])),
        nail_iou=bootstrap("nail_iou", sum(counts[1:], counts[0])),
        boundary_f=bootstrap("boundary_f", sum(edges[1:], edges[0])),
        gain=gain,
        cost=cost,
    )


def render_markdown(result: ChoicesResult) -> str:
    """The table for the model card or a note; accuracies in points."""

    def points(interval: Interval, sign: str = "") -> str:
        return interval.tell(scale=100, sign=sign)

    config, first = result.config, result.rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        f"{result.title}, {result.size_px[0]} × {result.size_px[1]} px: {config['steps']} steps of "
        f"{config['batch']} crops ({config['crop_px']} px), {result.seeds} "
        f"seed{'s' if result.seeds > 1 else ''} each; trained on {result.trained_on.count} images "
        f"({result.trained_on.name}), measured on {result.images.count} held-out images "
        f"({result.images.name}, content hash `{result.images.sha256[:16]}…`).",
        "",
        "Brackets: 95 % bootstrap over images, seeds pooled; the gain is in nail IoU over the first row, "
        f"images in pairs{' and seeds' if result.seeds > 1 else ''} resampled"
        + ("" if result.seeds > 1 else " (one seed: how much a gain varies with it is not known)")
        + ". CPU-ms: one thread, medians of interleaved samples, "
        f"{first.cost.samples} in onnxruntime, {_tell_browser(first.cost)}.",
        f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}; {versions}.",
        "",
        "| choice | from | mIoU | nail IoU | boundary F | nail IoU of each seed | gain | CPU-ms, onnxruntime "
        "| CPU-ms, TF.js wasm | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result.rows:
        each = ", ".join(f"{100 * value:.1f}" for value in row.nail_iou_by_seed)
        gain = "–" if row.name == first.name else points(row.gain, "+")
        areas = " | ".join(map(points, (row.miou, row.nail_iou, row.boundary_f)))
        wasm = "–" if row.cost.tfjs_wasm_cpu_ms is None else f"{row.cost.tfjs_wasm_cpu_ms:.0f}"
        cost = f"{row.cost.cpu_ms:.1f} | {wasm} | {row.cost.size_bytes / 1e6:.1f}"
        lines.append(f"| {row.name} | {row.init} | {areas} | {each} | {gain} | {cost} |")
    return "\n".join(lines) + "\n"


def _tell_browser(cost: Cost) -> str:
    if cost.tfjs_wasm_cpu_ms is None:
        return "TF.js not measured here (no Chromium)"
    kept = {name: v for name, v in cost.tfjs_versions.items() if not name.startswith("tfjs-backend")}
    versions = ", ".join(f"{name} {version}" for name, version in kept.items())
    return f"{cost.tfjs_wasm_samples} in TF.js on wasm ({versions})"
