"""{LMP, 20 ×} × {cascade, single branch} with the same budget and several seeds; resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.ablation_facts import AblationCell, AblationGain, AblationReport
from benchmark.accuracy import evaluate_runner
from nailcore.data.folder import Dataset
from nailcore.errors import ArtifactError
from nailcore.facts import AccuracyResult, ImageSet, Interval, read_fact, write_fact
from nailcore.measure import describe_machine, find_versions
from nailcore.metrics import bootstrap, miou_of, nail_iou_of
from nailcore.runtime import Images, Logits
from nailcore.storage import hash_file
from nailcore.train import FREE_SETTINGS, StepReport, TrainConfig, run_training
from nailcore.variant import Variant

NETWORKS = ("cascade", "single branch")
LOSSES = ("lmp", "weighted")
LOSS_NAMES = {"lmp": "LMP", "weighted": "20 ×"}
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AblationOrder:
    """What is compared on what; ``config`` without loss and seed."""

    variant: Variant
    sources: tuple[Dataset, ...]
    held_out: Dataset  # its held-out part is what everything is measured on
    config: TrainConfig
    init: Path | None
    seeds: int
    out: Path


class NetworkRunner:
    """A network in training form as a Runner."""

    def __init__(self, network: Any, variant: Variant) -> None:
        import torch

        self.network, self.variant = network.eval(), variant
        self.versions = {"torch": str(torch.__version__)}
        self.runtime = f"torch {self.versions['torch']}"

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named logits."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.variant.mean, self.variant.std))
        with torch.inference_mode():
            logits = self.network((x - mean) / std)
        return {name: value.numpy() for name, value in logits.items()}

    def close(self) -> None:
        """Nothing to give back."""


def run_ablation(
    order: AblationOrder, report: Callable[[str, StepReport], None] | None = None
) -> AblationReport:
    """Train and measure every cell, going on where an interrupted run stopped; writes nothing but ``out``.

    Raises:
        DataError, WeightsError, NailtoolError: see ``run_training``.
    """
    results: dict[tuple[str, str], list[AccuracyResult]] = {}
    # Seeds outside, so that an interrupted ablation has whole rounds.
    for seed, network, loss in product(range(order.seeds), NETWORKS, LOSSES):
        results.setdefault((network, loss), []).append(_measure_cell(order, network, loss, seed, report))
    cells = [_describe_cell(key, found) for key, found in results.items()]
    return AblationReport(
        variant=order.variant.name,
        steps=order.config.steps,
        batch=order.config.batch,
        crop_px=order.config.crop_px,
        init=order.init.name if order.init else "random",
        images=order.held_out.describe("held-out"),
        trained_on=sum_up_sets([source.describe("train") for source in order.sources]),
        machine=describe_machine(),
        versions=find_versions(("torch", "lightning-fabric", "numpy", "opencv-python-headless")),
        init_sha256=hash_file(order.init) if order.init else "",
        config=order.config.model_dump(mode="json", exclude={*FREE_SETTINGS, "seed", "mask_loss"}),
        weights_sha256={
            f"{network} {loss}": tuple(r.weights_sha256 for r in found)
            for (network, loss), found in results.items()
        },
        cells=cells,
        gains=list_gains({key: [count_images(r) for r in found] for key, found in results.items()}),
    )


def _measure_cell(
    order: AblationOrder,
    network: str,
    loss: str,
    seed: int,
    report: Callable[[str, StepReport], None] | None,
) -> AccuracyResult:
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.single_branch import build_single_branch
    from nailcore.nets.weights import read_state

    name = f"{network.replace(' ', '-')}-{loss}-seed{seed}"
    folder = order.out / name
    build = build_cascade if network == "cascade" else build_single_branch
    config = order.config.model_copy(update={"mask_loss": loss, "seed": seed})
    weights = run_training(
        order.variant,
        order.sources,
        config,
        folder,
        init=order.init,
        report=None if report is None else lambda step: report(name, step),
        build=build,
    )
    fact = folder / "accuracy.json"
    known = read_known(fact, weights, order.held_out)
    if known is not None:
        return known
    net = build(order.variant)
    net.load_state_dict(read_state(weights))
    heads = ("fgbg", "finger", "direction")
    result = evaluate_runner(
        NetworkRunner(net, order.variant),
        order.variant,
        weights,
        order.held_out,
        "held-out",
        folder / "overlays",
        heads,
    )
    write_fact(fact, result)
    return result


def read_known(path: Path, weights: Path, held_out: Dataset) -> AccuracyResult | None:
    """What an earlier run measured, if it was of these very weights on these very images."""
    try:
        known = read_fact(path, AccuracyResult)
    except ArtifactError:
        return None
    same_images = known.images.sha256 == held_out.describe("held-out").sha256
    return known if same_images and known.weights_sha256 == hash_file(weights) else None


def sum_up_sets(sets: Sequence[ImageSet]) -> ImageSet:
    """One entry for several data sets."""
    if len(sets) == 1:
        return sets[0]
    return ImageSet(
        name=" + ".join(s.name for s in sets),
        sha256=hashlib.sha256("\n".join(s.sha256 for s in sets).encode()).hexdigest(),
        count=sum(s.count for s in sets),
        synthetic=all(s.synthetic for s in sets),
    )


def count_images(result: AccuracyResult) -> Counts:
    """(images, 4) tp, fp, fn, tn, sorted by image name."""
    images = sorted(result.per_image, key=lambda image: image.name)
    return np.array([[i.tp, i.fp, i.fn, i.tn] for i in images], np.float64)


def count_edges(result: AccuracyResult) -> Counts:
    """(images, 4) boundary counts, sorted by image name."""
    images = sorted(result.per_image, key=lambda image: image.name)
    return np.array([i.boundary or (0, 0, 0, 0) for i in images], np.float64)


def _describe_cell(key: tuple[str, str], results: Sequence[AccuracyResult]) -> AblationCell:
    counts = np.sum([count_images(r) for r in results], axis=0)
    edges = np.sum([count_edges(r) for r in results], axis=0)
    return AblationCell(
        network=key[0],
        loss=key[1],
        seeds=tuple(range(len(results))),
        miou_by_seed=tuple(r.miou.value for r in results),
        nail_iou_by_seed=tuple(r.nail_iou.value for r in results),
        miou=bootstrap("miou", counts),
        nail_iou=bootstrap("nail_iou", counts),
        boundary_f=bootstrap("boundary_f", edges),
    )


def list_gains(cells: dict[tuple[str, str], list[Counts]]) -> list[AblationGain]:
    """LMP over 20 × for each network and averaged, cascade over single branch for each loss and averaged.

    ``cells``: (network, loss) -> counts (images, 4) of each seed, the images in the same order.
    """
    gains = []
    for given in (*NETWORKS, "all"):
        networks = NETWORKS if given == "all" else (given,)
        better, worse = ([cells[n, loss] for n in networks] for loss in LOSSES)
        gains.append(_compare("lmp", "weighted", given, (better, worse)))
    for given in (*LOSSES, "all"):
        losses = LOSSES if given == "all" else (given,)
        better, worse = ([cells[network, loss] for loss in losses] for network in NETWORKS)
        gains.append(_compare("cascade", "single branch", given, (better, worse)))
    return gains


def _compare(
    better: str, worse: str, given: str, sides: tuple[list[list[Counts]], list[list[Counts]]]
) -> AblationGain:
    miou, nail_iou = compare_counts(*sides)
    return AblationGain(better=better, worse=worse, given=given, miou=miou, nail_iou=nail_iou)


def compare_counts(better: list[list[Counts]], worse: list[list[Counts]]) -> tuple[Interval, Interval]:
    """Differences in mIoU and in nail IoU, averaged over cells; each side cells of seeds of counts.

    Images and seeds are resampled; both sides see the same images (a paired bootstrap).
    """
    stacks = [
        np.stack([np.stack(seeds) for seeds in side]) for side in (better, worse)
    ]  # (cells, seeds, images, 4)
    rng = np.random.default_rng(0)
    _, seeds, images, _ = stacks[0].shape
    drawn: list[list[float]] = [[], []]
    for _ in range(2000):
        picks = rng.integers(images, size=images)
        # Seeds of the two sides have nothing in common but their number: drawn apart.
        sums = [s[:, rng.integers(seeds, size=seeds)][:, :, picks].sum(axis=(1, 2)) for s in stacks]
        for values, statistic in zip(drawn, (miou_of, nail_iou_of), strict=True):
            values.append(float(statistic(*sums[0].T).mean() - statistic(*sums[1].T).mean()))
    found = []
    for values, statistic in zip(drawn, (miou_of, nail_iou_of), strict=True):
        sums = [s.sum(axis=(1, 2)) for s in stacks]
        low, high = np.percentile(values, [2.5, 97.5])
        value = float(statistic(*sums[0].T).mean() - statistic(*sums[1].T).mean())
        found.append(Interval(value=value, low=float(low), high=float(high)))
    return found[0], found[1]


def render_markdown(result: AblationReport) -> str:
    """The tables as Markdown; mIoU and nail IoU in points."""

    def points(interval: Interval) -> str:
        return interval.tell(scale=100)

    seeds = len(result.cells[0].seeds)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        f"{result.variant}: {result.steps} steps of {result.batch} crops ({result.crop_px} px), "
        f"{seeds} seed{'s' if seeds > 1 else ''} per cell, from `{result.init}`; trained on "
        f"{result.trained_on.count} images ({result.trained_on.name}), measured on "
        f"{result.images.count} held-out images ({result.images.name}, content hash "
        f"`{result.images.sha256[:16]}…`).",
        "",
        "Brackets: 95 % bootstrap; of the cells over images with all seeds pooled, of the gains over images "
        f"(in pairs) and over seeds, which {seeds} can only hint at.",
        f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}; {versions}.",
        "",
        "| network | loss | mIoU | nail IoU | boundary F | mIoU of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for cell in result.cells:
        each = ", ".join(f"{100 * value:.1f}" for value in cell.miou_by_seed)
        lines.append(
            f"| {cell.network} | {LOSS_NAMES[cell.loss]} | {points(cell.miou)} | {points(cell.nail_iou)} "
            f"| {points(cell.boundary_f)} | {each} |"
        )
    lines += ["", "| gain | given | mIoU | nail IoU | sure |", "|---|---|---|---|---|"]
    for gain in result.gains:
        names = [LOSS_NAMES.get(name, name) for name in (gain.better, gain.worse, gain.given)]
        sure = "yes" if gain.miou.low > 0 else "the other way" if gain.miou.high < 0 else "no"
        if seeds < 2:  # images alone say nothing of another training
            sure = "one seed"
        what = f"{names[0]} over {names[1]} | {names[2]}"
        lines.append(f"| {what} | {points(gain.miou)} | {points(gain.nail_iou)} | {sure} |")
    return "\n".join(lines) + "\n"
