"""Training as the front door runs it: train, measure on held-out images, write facts and card."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nailcore.errors import MissingToolError, NailtoolError, UnknownNameError, tell_problems
from nailcore.facts import AccuracyResult, ImageSet, WeightsFacts, read_fact, write_fact
from nailcore.variant import Variant
from nailtool.command_line import shorten_command
from nailtool.training_checks import check_apart, check_part
from nailtool.training_display import TrainingBar, TrainingBoard

if TYPE_CHECKING:
    from rich.console import Console

    from nailcore.data.folder import Dataset
    from nailcore.train import StepReport, TrainConfig

WEIGHTS_SUFFIXES = (".safetensors", ".md", ".json")  # in the order they are shipped
# Settings that touch the weights and the flags they are given by, for the command in the facts.
SETTING_FLAGS = {
    "steps": "--steps",
    "batch": "--batch",
    "crop_px": "--crop",
    "seed": "--seed",
    "frozen_stages": "--frozen-stages",
    "lr_encoder": "--lr-encoder",
    "lr_decoder": "--lr-decoder",
    "mask_loss": "--mask-loss",
    "direction_loss": "--direction-loss",
    "finger_weight": "--finger-weight",
    "direction_weight": "--direction-weight",
    "plain_steps": "--plain-steps",
    "precision": "--precision",
    "crops": "--crops",
    "whole_share": "--whole-share",
    "weight_decay": "--weight-decay",
    "warmup_steps": "--warmup-steps",
    "ema_decay": "--ema-decay",
    "level_weights": "--level-weights",
}
TOOLS = ("torch", "lightning-fabric", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class TrainOrder:
    """What is to be trained; ``settings`` are fields of TrainConfig."""

    data: tuple[str, ...]  # FOLDER or FOLDER:SHARE
    depth: int
    init: str | None  # a file, or the stem of shipped weights such as nail55-480
    out: Path
    settings: dict[str, Any]
    phases: tuple[str, ...] = ()  # STEPS:SHARE,SHARE
    input_px: int = 0  # train and name the weights for one resolution; 0: for all of a depth
    fold: str = ""  # k/n: cross-validation on the photographs
    max_minutes: float = 0.0
    tensorboard: bool = False
    encoder: str = "mobilenetv2"
    measure_rendered: bool = True  # also on the rendered data sets' held-out parts
    machine_labels: float | None = None  # learn from unconfirmed guesses of at least this confidence


def parse_data(text: str) -> tuple[Path, float]:
    """``FOLDER`` or ``FOLDER:SHARE``."""
    folder, colon, share = text.rpartition(":")
    if colon and folder:
        try:
            return Path(folder), float(share)
        except ValueError:
            pass
    return Path(text), 1.0


def parse_phase(text: str) -> tuple[int, tuple[float, ...]]:
    """``STEPS:SHARE,SHARE``, one share per data set; raises NailtoolError."""
    steps, colon, shares = text.partition(":")
    try:
        if colon:
            return int(steps), tuple(float(share) for share in shares.split(","))
    except ValueError:
        pass
    raise NailtoolError(
        f"Phase '{text}': expected STEPS:SHARE,SHARE, one share per --data, such as 2000:1,0."
    )


def parse_levels(text: str) -> dict[int, float]:
    """``1,0.4,0.4``: weights of the losses at the strides 4, 8 and 16; raises NailtoolError."""
    try:
        return dict(zip((4, 8, 16), map(float, text.split(",")), strict=True))
    except ValueError as error:
        raise NailtoolError(
            f"--level-weights '{text}': expected three numbers, for the strides 4, 8 and 16: 1,0.4,0.4."
        ) from error


def find_depth(depth: int) -> list[Variant]:
    """The family's variants of a depth, largest input first; raises UnknownNameError.

    Variants of adopted weights (``mine-480``) have a size of the family's, and would be measured as its twin.
    """
    from model_zoo import load_variants

    family = [v for v in load_variants().values() if v.name.startswith(f"nail{v.encoder_layers}-")]
    found = [variant for variant in family if variant.encoder_layers == depth]
    if not found:
        raise UnknownNameError("depth", str(depth), {str(v.encoder_layers) for v in family})
    return found


def plan_settings(order: TrainOrder) -> dict[str, Any]:
    """The fields of TrainConfig: steps and phases from --steps, --phase and the shares of --data."""
    settings = dict(order.settings)
    shares = [parse_data(text)[1] for text in order.data]
    if order.phases:
        if any(share != 1 for share in shares):
            raise NailtoolError(
                "--phase gives the shares of every --data, and so does FOLDER:SHARE.",
                hint="Leave the shares behind --data away.",
            )
        phases = [parse_phase(text) for text in order.phases]
        settings["steps"] = sum(steps for steps, _ in phases)
        settings["phases"] = [{"steps": steps, "shares": shares} for steps, shares in phases]
    elif len(shares) > 1:
        settings["phases"] = [{"steps": settings["steps"], "shares": shares}]
    if order.input_px:
        settings["long_side_px"] = order.input_px
    return settings


def make_config(order: TrainOrder) -> TrainConfig:
    """The settings, checked; raises NailtoolError naming the key and the value found."""
    from pydantic import ValidationError

    from nailcore.train import TrainConfig

    try:
        return TrainConfig(**plan_settings(order))
    except ValidationError as error:
        raise NailtoolError(f"Impossible training settings: {tell_problems(error, 'settings')}.") from error


def find_init(init: str | None) -> Path | None:
    """A file, or the shipped weights of that name; raises NailtoolError."""
    if init is None:
        return None
    from model_zoo import WEIGHTS_DIR

    for path in (Path(init), WEIGHTS_DIR / f"{init}.safetensors"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors")))
    raise NailtoolError(
        f"{init}: no such file, but --init names it.",
        hint=f"Name a .npz or .safetensors file, or shipped weights: {shipped or 'none'}.",
    )


def open_sources(order: TrainOrder) -> list[Dataset]:
    """The data sets in their order; with a fold, the photographs are cut anew."""
    from nailcore.data.folder import open_dataset
    from nailcore.data.folds import Fold, select_fold

    sources = [
        replace(open_dataset(parse_data(text)[0]), learn_guesses=order.machine_labels) for text in order.data
    ]
    if not order.fold:
        return sources
    fold = Fold.parse(order.fold)
    if all(source.card.synthetic for source in sources):
        raise NailtoolError("--fold cuts photographs, but every --data is synthetic.")
    return [source if source.card.synthetic else select_fold(source, fold) for source in sources]


def choose_variants(order: TrainOrder) -> list[Variant]:
    """What the weights are measured as, the one that is trained first."""
    from nailcore.nets.encoder import with_encoder

    variants = find_depth(order.depth)
    if not order.input_px:  # one file for all sizes, whatever each of them ships with
        shared = {"weights": f"nail{order.depth}"}
        return [with_encoder(v.model_copy(update=shared), order.encoder) for v in variants]
    found = [v for v in variants if max(v.height_px, v.width_px) == order.input_px]
    if not found:
        sizes = {str(max(v.height_px, v.width_px)) for v in variants}
        raise UnknownNameError("input size", str(order.input_px), sizes)
    name = f"nail{order.depth}-{order.input_px}"
    return [with_encoder(v.model_copy(update={"weights": name}), order.encoder) for v in found]


def check_extra() -> None:
    """Raises MissingToolError when the extra ``train`` is not installed."""
    try:
        import lightning_fabric  # noqa: F401
    except ImportError as error:
        raise MissingToolError(
            "Training needs lightning-fabric, which is not installed.",
            hint='Install the extra: pip install -e ".[train]" in the source folder.',
        ) from error


def train_depth(order: TrainOrder, console: Console | None) -> WeightsFacts | None:
    """Train (or resume, or find finished) one depth; writes weights, facts and card to ``order.out``.

    None when ``max_minutes`` were over first, and in all but the first of several processes.

    Raises:
        MissingToolError: the extra ``train`` is not installed.
        DataError, WeightsError: unusable data, initialisation or checkpoint.
        BusyError: another command works in ``order.out``.
        NailtoolError: a setting is impossible, or the loss became NaN.
    """
    from nailcore.train import CHECKPOINT, PARTIAL, is_partial, run_training
    from nailtool.lock import hold_folder

    check_extra()
    variants = choose_variants(order)
    config = make_config(order)
    init = find_init(order.init)
    sources = open_sources(order)
    for source in _list_measured(order, sources):
        check_part(source, "test")
    check_apart(sources)
    name = variants[0].weights
    if int(os.environ.get("RANK", "0")):  # the first process holds the folder and reports for all
        run_training(variants[0], sources, config, order.out, init=init, max_minutes=order.max_minutes)
        return None
    written = (CHECKPOINT, f"{name}{PARTIAL}", *(f"{name}{suffix}" for suffix in WEIGHTS_SUFFIXES))
    with hold_folder(order.out, files=written):
        with (
            TrainingBar(console, name, config.steps) as bar,
            TrainingBoard(order.out if order.tensorboard else None) as board,
        ):

            def show(report: StepReport) -> None:
                bar.show(report)
                board.show(report)

            weights = run_training(
                variants[0],
                sources,
                config,
                order.out,
                init=init,
                report=show,
                max_minutes=order.max_minutes,
            )
            if is_partial(weights):
                return None
            bar.progress.update(bar.task, completed=config.steps)  # a finished training takes no step
        facts = _describe(order, config, variants, sources, weights)
        write_fact(weights.with_suffix(".json"), facts)
        _write_card(weights.with_suffix(".md"), facts)
    return facts


def _write_card(path: Path, facts: WeightsFacts) -> None:
    from model_zoo.card import render_card
    from nailcore.storage import write_text

    write_text(path, render_card(facts))


def find_trained_heads(config: TrainConfig, sources: list[Dataset], init: Path | None) -> tuple[str, ...]:
    """Heads that saw labels: in a data set that was drawn from, or before, in the initial weights."""
    drawn = _list_drawn(config, sources)
    labels = {label for source in drawn for sample in source.part("train") for label in sample.record.labels}
    weights = {"finger": config.finger_weight, "direction": config.direction_weight}
    heads = {"fgbg"} | {label for label, weight in weights.items() if label in labels and weight > 0}
    if init is not None and init.with_suffix(".json").is_file():
        heads |= set(read_fact(init.with_suffix(".json"), WeightsFacts).heads_trained)
    return tuple(head for head in ("fgbg", "finger", "direction") if head in heads)


def _list_drawn(config: TrainConfig, sources: list[Dataset]) -> list[Dataset]:
    """The data sets that some phase learns from."""
    phases = config.list_phases(len(sources))
    return [source for k, source in enumerate(sources) if any(phase.shares[k] > 0 for phase in phases)]


def _list_measured(order: TrainOrder, sources: list[Dataset]) -> list[Dataset]:
    """The data sets whose test parts the weights are measured on."""
    photographs = any(not source.card.synthetic for source in sources)
    return [s for s in sources if order.measure_rendered or not (s.card.synthetic and photographs)]


def _sum_up(sources: list[ImageSet]) -> ImageSet:
    """One entry for several data sets."""
    if len(sources) == 1:
        return sources[0]
    digest = hashlib.sha256("\n".join(s.sha256 for s in sources).encode()).hexdigest()
    return ImageSet(
        name=" + ".join(s.name for s in sources),
        sha256=digest,
        count=sum(s.count for s in sources),
        synthetic=all(s.synthetic for s in sources),
    )


def _describe(
    order: TrainOrder, config: TrainConfig, variants: list[Variant], sources: list[Dataset], weights: Path
) -> WeightsFacts:
    from benchmark.accuracy import evaluate_accuracy
    from nailcore.measure import describe_machine, find_versions
    from nailcore.nets import load_network
    from nailcore.storage import hash_file
    from nailcore.train import FREE_SETTINGS

    # Facts of an earlier training would contradict the weights that were just written.
    weights.with_suffix(".json").unlink(missing_ok=True)
    first = variants[0]
    init = find_init(order.init)
    heads = find_trained_heads(config, sources, init)
    measured: dict[bool, list[AccuracyResult]] = {False: [], True: []}
    chosen = _list_measured(order, sources)
    for number, source in enumerate(sources):
        if source not in chosen:
            continue
        folder = order.out / "overlays" / (f"{number}" if len(sources) > 1 else "")
        for variant in variants:
            result = evaluate_accuracy(variant, weights, source, "test", folder / variant.name, heads=heads)
            measured[source.card.synthetic].append(result)
    network = load_network(first, weights)
    trained_on = [source.describe("train") for source in _list_drawn(config, sources)]
    return WeightsFacts(
        weights=first.weights,
        sha256=hash_file(weights),
        size_bytes=weights.stat().st_size,
        encoder=first.encoder,
        encoder_layers=first.encoder_layers,
        fusion_width=first.fusion_width,
        parameters=sum(p.numel() for p in network.parameters()),
        heads_trained=heads,
        trained_on=_sum_up(trained_on),
        init=init.name if init else "random",
        init_sha256=hash_file(init) if init else "",
        command=_command(order, config),
        config=config.model_dump(mode="json", exclude=set(FREE_SETTINGS)),
        versions=find_versions(TOOLS),
        machine=describe_machine(),
        # Rendered images stand apart; where there are no photographs, they are all there is.
        accuracy=measured[False] or measured[True],
        sources=trained_on,
        accuracy_synthetic=measured[True] if measured[False] else [],
    )


def _command(order: TrainOrder, config: TrainConfig) -> str:
    """The command again, with folders of this machine reduced to their names."""
    arguments = ["train"]
    for text in order.data:
        folder, share = parse_data(text)
        arguments += ["--data", str(folder)]
        if share != 1:
            arguments[-1] += f":{share:g}"
    for text in order.phases:
        arguments += ["--phase", text]
    arguments += ["--depth", str(order.depth)]
    if order.encoder != TrainOrder.encoder:
        arguments += ["--encoder", order.encoder]
    if order.init is not None:
        arguments += ["--init", str(order.init)]
    if order.input_px:
        arguments += ["--input-px", str(order.input_px)]
    if order.machine_labels is not None:
        arguments += ["--machine-labels", f"{order.machine_labels:g}"]
    defaults = type(config)(steps=config.steps)
    for key, flag in SETTING_FLAGS.items():
        value = getattr(config, key)
        always = key in ("batch", "crop_px", "seed") or (key == "steps" and not order.phases)
        if always or (key != "steps" and value != getattr(defaults, key)):
            arguments += [flag, ",".join(map(str, value.values())) if isinstance(value, dict) else str(value)]
    fold = f" --fold {order.fold}" if order.fold else ""  # 1/5 is no path
    return shorten_command(arguments) + fold
