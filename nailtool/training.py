"""Training as the front door runs it: train, measure on held-out images, write facts and card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nailcore.errors import MissingToolError, NailtoolError, UnknownNameError
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact, write_fact
from nailcore.variant import Variant
from nailtool.command_line import shorten_command

if TYPE_CHECKING:
    from rich.console import Console

    from nailcore.data.folder import Dataset
    from nailcore.train import StepReport, TrainConfig

WEIGHTS_SUFFIXES = (".safetensors", ".md", ".json")  # in the order they are shipped
TOOLS = ("torch", "lightning-fabric", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class TrainOrder:
    """What is to be trained; ``settings`` are fields of TrainConfig."""

    data: Path
    depth: int
    init: Path | None
    out: Path
    settings: dict[str, int]


def find_depth(depth: int) -> list[Variant]:
    """The variants of a depth, largest input first; raises UnknownNameError."""
    from model_zoo import load_variants

    variants = load_variants().values()
    found = [variant for variant in variants if variant.encoder_layers == depth]
    if not found:
        raise UnknownNameError("depth", str(depth), {str(v.encoder_layers) for v in variants})
    return found


def train_depth(order: TrainOrder, console: Console | None) -> WeightsFacts:
    """Train (or resume, or find finished) one depth; writes weights, facts and card to ``order.out``.

    Raises:
        MissingToolError: the extra ``train`` is not installed.
        DataError, WeightsError: unusable data, initialisation or checkpoint.
        BusyError: another command works in ``order.out``.
        NailtoolError: a setting is impossible, or the loss became NaN.
    """
    from pydantic import ValidationError

    from nailcore.data.folder import open_dataset
    from nailcore.train import TrainConfig, run_training
    from nailtool.lock import hold_folder

    try:
        import lightning_fabric  # noqa: F401
    except ImportError as error:
        raise MissingToolError(
            "Training needs lightning-fabric, which is not installed.",
            hint='Install the extra: pip install "nailtool[train]".',
        ) from error
    variants = find_depth(order.depth)
    try:
        config = TrainConfig(**order.settings)
    except ValidationError as error:
        lines = "; ".join(f"{e['loc'][0]}: {e['msg']} (found {e['input']!r})" for e in error.errors())
        raise NailtoolError(f"Impossible training settings: {lines}.") from error
    if order.init is not None and not order.init.is_file():
        raise NailtoolError(f"{order.init}: no such file, but --init names it.")
    dataset = open_dataset(order.data)
    name = variants[0].weights
    written = ("checkpoint.pt", *(f"{name}{suffix}" for suffix in WEIGHTS_SUFFIXES))
    with hold_folder(order.out, files=written):
        with _Bar(console, name, config.steps) as bar:
            weights = run_training(variants[0], dataset, config, order.out, init=order.init, report=bar.show)
            bar.progress.update(bar.task, completed=config.steps)  # a finished training takes no step
        facts = _describe(order, config, variants, dataset, weights)
        write_fact(weights.with_suffix(".json"), facts)
        _write_card(weights.with_suffix(".md"), facts)
    return facts


def _write_card(path: Path, facts: WeightsFacts) -> None:
    from model_zoo.card import render_card
    from nailcore.storage import write_text

    write_text(path, render_card(facts))


class _Bar:
    """A rich bar with loss, speed and time left; nothing without a console."""

    def __init__(self, console: Console | None, name: str, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn(f"{name} {{task.fields[figures]}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self.task = self.progress.add_task(name, total=steps, figures="")
        self.loss = 0.0

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, report: StepReport) -> None:
        """One step later."""
        self.loss = report.loss if not self.loss else 0.95 * self.loss + 0.05 * report.loss
        figures = f"loss {self.loss:.3f}, {report.images_per_s:.1f} images/s"
        self.progress.update(self.task, completed=report.step, figures=figures)


def _describe(
    order: TrainOrder, config: TrainConfig, variants: list[Variant], dataset: Dataset, weights: Path
) -> WeightsFacts:
    from benchmark.accuracy import evaluate_accuracy
    from nailcore.measure import describe_machine, find_versions
    from nailcore.nets import load_network
    from nailcore.storage import hash_file

    # Facts of an earlier training would contradict the weights that were just written.
    weights.with_suffix(".json").unlink(missing_ok=True)
    first = variants[0]
    accuracy = [
        evaluate_accuracy(variant, weights, dataset, "held-out", order.out / "overlays" / variant.name)
        for variant in variants
    ]
    network = load_network(first, weights)
    return WeightsFacts(
        weights=first.weights,
        sha256=hash_file(weights),
        size_bytes=weights.stat().st_size,
        encoder=first.encoder,
        encoder_layers=first.encoder_layers,
        fusion_width=first.fusion_width,
        parameters=sum(p.numel() for p in network.parameters()),
        heads_trained=("fgbg",),
        trained_on=dataset.describe("train"),
        init=order.init.name if order.init else "random",
        init_sha256=hash_file(order.init) if order.init else "",
        command=_command(order),
        config=config.model_dump(mode="json", exclude={"threads", "checkpoint_every"}),
        versions=find_versions(TOOLS),
        machine=describe_machine(),
        accuracy=accuracy,
    )


def _command(order: TrainOrder) -> str:
    """The command again, with folders of this machine reduced to their names."""
    arguments = ["train", "--data", str(order.data), "--depth", str(order.depth)]
    if order.init is not None:
        arguments += ["--init", str(order.init)]
    flags = {"steps": "--steps", "batch": "--batch", "crop_px": "--crop", "seed": "--seed"}
    for key, flag in flags.items():
        arguments += [flag, str(order.settings[key])]
    return shorten_command(arguments)


def _headline(accuracy: list[AccuracyResult]) -> float:
    return accuracy[0].nail_iou.value


def ship_weights(out: Path, facts: WeightsFacts) -> str:
    """Copy weights, facts and card into the model zoo when they beat what lies there; says what it did.

    Raises:
        NailtoolError: the two were measured on different images, so that no one can tell.
    """
    from model_zoo import WEIGHTS_DIR

    shipped = WEIGHTS_DIR / f"{facts.weights}.json"
    if shipped.is_file():
        old = read_fact(shipped, WeightsFacts)
        if old.accuracy[0].images.sha256 != facts.accuracy[0].images.sha256:
            raise NailtoolError(
                f"{facts.weights}: the shipped weights were measured on other images "
                f"({old.accuracy[0].images.name}) than these ({facts.accuracy[0].images.name}).",
                hint="Train with the same --data, or replace the files by hand and say why.",
            )
        if _headline(facts.accuracy) <= _headline(old.accuracy):
            return (
                f"Not shipped: nail IoU {_headline(facts.accuracy):.4f} does not beat "
                f"the shipped {_headline(old.accuracy):.4f}."
            )
    WEIGHTS_DIR.mkdir(parents=True, exist_ok=True)
    from nailcore.storage import replacing

    # The facts go first and come last: they never describe other weights than those beside them.
    shipped.unlink(missing_ok=True)
    for suffix in WEIGHTS_SUFFIXES:
        target = WEIGHTS_DIR / f"{facts.weights}{suffix}"
        with replacing(target) as scratch:
            shutil.copyfile(out / target.name, scratch)
    return (
        f"Shipped {facts.weights}: nail IoU {_headline(facts.accuracy):.4f} at {facts.accuracy[0].variant}."
    )
