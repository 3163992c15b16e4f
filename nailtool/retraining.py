"""A training plan from its first step to its last: render, train by stages, fine-tune, measure, deliver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nailcore.errors import ArtifactError, NailtoolError
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact, write_fact
from nailtool.plan import Mix, TrainingPlan
from nailtool.retraining_facts import RetrainingResult, StageFacts, StageFigures, render_markdown
from nailtool.terminal import Terminal
from nailtool.training import (
    TOOLS,
    WEIGHTS_SUFFIXES,
    TrainOrder,
    check_extra,
    choose_variants,
    find_init,
    make_config,
    open_sources,
    train_depth,
)
from nailtool.training_checks import check_part

if TYPE_CHECKING:
    from nailcore.data.folder import Dataset

HANDS, DELIVERED, RECORD = "hands", "weights", "training.json"
RESULT, POOLED = "retraining", "cross-validation"


@dataclass(frozen=True)
class RetrainOrder:
    """What is to be retrained with what; ``free`` are settings that do not touch the weights."""

    plan: TrainingPlan
    photos: Path
    init: str | None
    out: Path
    hands: Path | None = None  # a rendered set that exists, instead of OUT/hands
    folds: int = 0
    smoke: bool = False
    jobs: int = 1
    max_minutes: float = 0.0
    blender_python: Path | None = None
    machine_labels: float | None = None  # as TrainOrder has it
    free: tuple[tuple[str, Any], ...] = ()

    @property
    def hands_dir(self) -> Path:
        """Where the rendered hands lie."""
        return self.hands or self.out / HANDS


@dataclass(frozen=True)
class Training:
    """One training of a plan: what ``nailtool train`` would be told."""

    order: TrainOrder
    last: bool  # its weights are a result, not a step on the way
    after: Path | None  # the folder of the training it starts from

    @property
    def weights(self) -> Path:
        """The file it writes."""
        return self.order.out / f"{choose_variants(self.order)[0].weights}.safetensors"


def list_trainings(order: RetrainOrder) -> list[Training]:
    """Every training in its order; those before the first photograph are shared by all folds."""
    found: list[Training] = []
    for fold in range(1, order.folds + 1) if order.folds else (0,):
        before, seen_photos = None, False
        sizes_from = len(order.plan.stages)
        for number, (name, px, mix) in enumerate(order.plan.list_stages()):
            seen_photos = seen_photos or mix.photos > 0
            part = f"fold-{fold}-of-{order.folds}/" if fold and seen_photos else ""
            training = _make_training(order, f"{part}{name}", px, mix, fold, before)
            if number < sizes_from:  # sizes all start from the last stage
                before = training
            if training.order.out not in [known.order.out for known in found]:
                found.append(replace(training, last=number >= sizes_from - 1))
    return found


def _make_training(  # noqa: PLR0917 - named at its one call
    order: RetrainOrder, folder: str, px: int, mix: Mix, fold: int, before: Training | None
) -> Training:
    sources = [(order.hands_dir, mix.hands), (order.photos, mix.photos)]
    settings = {**order.plan.merge(mix), **dict(order.free)}
    return Training(
        TrainOrder(
            data=tuple(f"{path}:{share:g}" for path, share in sources if share > 0),
            depth=order.plan.depth,
            encoder=order.plan.encoder,
            init=order.init if before is None else str(before.weights),
            out=order.out / folder,
            settings=settings,
            input_px=px,
            fold=f"{fold}/{order.folds}" if fold and mix.photos > 0 else "",
            measure_rendered=not fold or mix.photos == 0,
            machine_labels=order.machine_labels,
        ),
        last=False,
        after=None if before is None else before.order.out,
    )


def run_plan(order: RetrainOrder, terminal: Terminal) -> RetrainingResult | None:
    """Render, train every stage (going on where it was stopped), measure, deliver.

    None when ``max_minutes`` were over first. Writes ``OUT/retraining.json`` and ``.md``, and the results
    to ``OUT/weights``; with folds ``OUT/cross-validation.json`` and ``.md``, and pooled facts beside them.

    Raises:
        MissingToolError, DataError, WeightsError, NailtoolError: see ``train_depth``.
        BusyError: another command works in ``order.out``.
    """
    from nailtool.lock import hold_folder

    check_extra()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NailtoolError("A plan runs in one process; give torchrun the single stages (nailtool train).")
    deadline = time.monotonic() + 60 * order.max_minutes if order.max_minutes else 0.0
    trainings = list_trainings(order)
    _check_all(order, trainings)
    name = POOLED if order.folds else RESULT
    names = (f"{name}.json", f"{name}.md")
    with hold_folder(order.out, files=names):
        _render_hands(order, terminal)
        facts: list[WeightsFacts] = []
        for number, training in enumerate(trainings, start=1):
            folder = training.order.out.relative_to(order.out)
            left = (deadline - time.monotonic()) / 60 if deadline else 0.0
            terminal.note(f"stage {number} of {len(trainings)}: {folder}")
            if deadline and left <= 0:
                return None
            found = _run_training(training, left, terminal)
            if found is None:
                return None
            facts.append(found)
        result = _sum_up(order, trainings, facts)
        write_fact(order.out / names[0], result)
        from nailcore.storage import write_text

        write_text(order.out / names[1], render_markdown(result))
        if not order.folds:
            _deliver(order.out / DELIVERED, [t for t in trainings if t.last])
    return result


def _check_all(order: RetrainOrder, trainings: Sequence[Training]) -> None:
    """Say what is wrong before hours of work, not after."""
    from nailcore.data.folder import open_dataset
    from nailcore.data.folds import Fold, select_fold
    from nailcore.train import start_training

    for training in trainings:
        make_config(training.order)
        choose_variants(training.order)
    if order.folds and not any(training.order.fold for training in trainings):
        raise NailtoolError(
            "--folds cuts photographs, but no stage of this plan learns from any.",
            hint="Cross-validate at least until the first stage with photographs (--until).",
        )
    first = trainings[0].order
    start_training(choose_variants(first)[0], make_config(first), find_init(order.init))
    photos = open_dataset(order.photos)
    if photos.card.synthetic:
        raise NailtoolError(f"{order.photos}: holds rendered images, but --photos names photographs.")
    _check_parts(select_fold(photos, Fold(1, order.folds)) if order.folds else photos)
    if order.hands is not None:
        hands = open_dataset(order.hands)
        if not hands.card.synthetic:
            raise NailtoolError(f"{order.hands}: holds photographs, but --hands names rendered images.")
        _check_parts(hands)


def _check_parts(dataset: Dataset) -> None:
    check_part(dataset, "train")
    check_part(dataset, "test")


def _render_hands(order: RetrainOrder, terminal: Terminal) -> None:
    if order.hands is not None or not any(mix.hands > 0 for _, _, mix in order.plan.list_stages()):
        return
    from nailcore.data.synth import RenderOrder, render_set
    from nailtool.count_bar import CountBar

    wanted = order.plan.hands
    hands = RenderOrder(
        count=wanted.count, subjects=wanted.subjects, seed=wanted.seed, renderer=wanted.renderer
    )
    with CountBar(terminal, "rendered") as bar:
        render_set(order.hands_dir, hands, jobs=order.jobs, progress=bar, blender_python=order.blender_python)


def _run_training(training: Training, minutes: float, terminal: Terminal) -> WeightsFacts | None:
    """The facts of a finished training, or train; None when the time was over first."""
    identity = _describe(training.order)
    record = training.order.out / RECORD
    with contextlib.suppress(OSError, ValueError, KeyError, ArtifactError):
        known = json.loads(record.read_text("utf-8"))
        facts = read_fact(training.weights.with_suffix(".json"), WeightsFacts)
        from nailcore.storage import hash_file

        if known["identity"] == identity and hash_file(training.weights) == facts.sha256:
            return facts
    console = None if terminal.quiet else terminal.console()
    found = train_depth(replace(training.order, max_minutes=minutes), console)
    if found is not None:
        from nailcore.storage import write_text

        write_text(record, json.dumps({"identity": identity}, indent=1))
    return found


def _describe(order: TrainOrder) -> Any:
    """What a training depends on, as JSON gives it back."""
    from nailcore.train import describe_training

    variant, sources = choose_variants(order)[0], open_sources(order)
    measured = [[source.describe("test").sha256 for source in sources], order.measure_rendered]
    found = describe_training(variant, sources, make_config(order), find_init(order.init), 1)
    found["variant"]["weights"] = variant.weights  # a file under another name would not be found
    return json.loads(json.dumps({**found, "measured": measured}))


def _sum_up(
    order: RetrainOrder, trainings: Sequence[Training], facts: Sequence[WeightsFacts]
) -> RetrainingResult:
    from nailcore.measure import describe_machine, find_versions
    from nailtool.evaluation import pool_folds

    stages = [
        StageFacts(
            folder=training.order.out.relative_to(order.out).as_posix(),
            weights=fact.weights,
            sha256=fact.sha256,
            steps=make_config(training.order).steps,
            init=fact.init,
            init_sha256=fact.init_sha256,
            trained_on=fact.trained_on,
            figures=[StageFigures.of(a) for a in (*fact.accuracy, *fact.accuracy_synthetic)],
        )
        for training, fact in zip(trainings, facts, strict=True)
    ]
    pooled: list[AccuracyResult] = []
    if order.folds:
        written = []
        for name in _list_last(order.plan):
            files = [t.weights.with_suffix(".json") for t in trainings if t.order.out.name == name]
            for result in pool_folds(files):
                written.append(order.out / POOLED / f"{name}.{result.variant}.json")
                write_fact(written[-1], result)
                pooled.append(result)
        for stale in set((order.out / POOLED).glob("*.json")) - set(written):
            stale.unlink()  # of other stages: they would stand on the card as if they were of these
    return RetrainingResult(
        plan=order.plan.model_dump(mode="json"),
        smoke=order.smoke,
        folds=order.folds,
        machine_labels=order.machine_labels,
        stages=stages,
        pooled=[StageFigures.of(result) for result in pooled],
        machine=describe_machine(),
        versions=find_versions(TOOLS),
    )


def _list_last(plan: TrainingPlan) -> list[str]:
    """Folder names of the trainings whose weights are results."""
    return [name for name, _, _ in plan.list_stages()][len(plan.stages) - 1 :]


def _deliver(folder: Path, trainings: Sequence[Training]) -> None:
    """Copy weights, facts and cards to one folder; the facts come last."""
    from nailcore.storage import replacing

    for training in trainings:
        for suffix in WEIGHTS_SUFFIXES:
            source = training.weights.with_suffix(suffix)
            with replacing(folder / source.name) as scratch:
                shutil.copyfile(source, scratch)


def describe_plan(order: RetrainOrder) -> Iterator[tuple[str, str, str, str]]:
    """(folder, steps, data, starts from) of every training, as a table for ``--dry-run``."""
    for training in list_trainings(order):
        told = training.order
        start = training.after.relative_to(order.out).as_posix() if training.after else told.init or "random"
        data = ", ".join(f"{Path(text).name}" for text in told.data) + (
            f" (fold {told.fold})" if told.fold else ""
        )
        yield told.out.relative_to(order.out).as_posix(), str(told.settings["steps"]), data, start
