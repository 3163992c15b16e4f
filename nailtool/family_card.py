"""The card of a training: stages, cross-validation, ablations and free choices, written from their facts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from nailcore.errors import ArtifactError, NailtoolError, tell_problems
from nailcore.facts import AccuracyResult, read_fact
from nailtool.plan import TrainingPlan
from nailtool.retraining import POOLED, RESULT
from nailtool.retraining_facts import RetrainingResult

CARD = "README.md"


@dataclass(frozen=True)
class Evidence:
    """Files of facts in a training's folder, and how they are told."""

    title: str
    command: str  # that measures it
    render: Callable[[list[Path]], str]
    patterns: tuple[str, ...]  # below the folder; the first is the one that must be there
    options: str = ""  # of the command, while it was not run
    tell_options: Callable[[Path], str] | None = None  # those it ran with, from its first file

    def tell_command(self, plan: str, folder: Path) -> str:
        """The command, with the name of the plan and, where they are known, the options it ran with."""
        found = self.find(folder)
        options = self.tell_options(found[0]) if found and self.tell_options else self.options
        return f"{self.command.replace('PLAN', plan)} {options}".strip()

    def find(self, folder: Path) -> list[Path]:
        """Its files in order; none when it was not measured."""
        found = [sorted(folder.glob(pattern)) for pattern in self.patterns]
        return [file for files in found for file in files] if found[0] else []


def _tell_options(file: Path) -> str:
    """The options that decided what a run of a plan did."""
    result = read_fact(file, RetrainingResult)
    try:
        plan = TrainingPlan.model_validate(result.plan)
    except ValidationError as error:
        raise ArtifactError(f"{file}: holds a plan that is none: {tell_problems(error, most=1)}") from error
    options = [f"--folds {result.folds}"] if result.folds else []
    if plan.sizes is None:  # as in a plan that has none, where this option changes nothing
        options.append(f"--until {plan.stages[-1].name}")
    else:
        options.append(f"--sizes {','.join(map(str, plan.sizes.px)) or 'none'}")
    if result.machine_labels is not None:
        options.append(f"--machine-labels {result.machine_labels:g}")
    return " ".join([*options, *(["--smoke"] if result.smoke else [])])


def _render_stages(files: list[Path]) -> str:
    from nailtool.retraining_facts import render_stages

    return render_stages(read_fact(files[0], RetrainingResult))


def _render_folds(files: list[Path]) -> str:
    from nailtool.retraining_facts import render_pooled

    pooled = [_render_kinds(read_fact(file, AccuracyResult)) for file in files[1:]]
    return "\n".join([render_pooled(read_fact(files[0], RetrainingResult)), *pooled])


def _render_measured(files: list[Path]) -> str:
    from model_zoo.card import render_measured

    found = [read_fact(file, AccuracyResult) for file in files]
    largest = max(found, key=lambda accuracy: int(accuracy.variant.rsplit("-", 1)[1]))  # nail55-480
    return f"{render_measured(found)}\n{_render_kinds(largest)}"


def _render_kinds(accuracy: AccuracyResult) -> str:
    from model_zoo.card import render_slices

    images = f"{accuracy.images.count} images of {accuracy.images.name}"
    return f"{accuracy.variant} by kind of image, {images}:\n\n{render_slices(accuracy)}\n"


def _render_ablation(files: list[Path]) -> str:
    from benchmark.ablation import render_markdown
    from benchmark.ablation_facts import AblationReport

    return render_markdown(read_fact(files[0], AblationReport))


def _render_choices(files: list[Path]) -> str:
    from benchmark.choices import ChoicesResult, render_markdown

    return render_markdown(read_fact(files[0], ChoicesResult))


RENDERED, PHOTOGRAPHS = "rendered", "photographs"
RETRAIN = "nailtool retrain --plan PLAN --photos PHOTOS --init FILE --out FOLDER"
EVIDENCE = (
    Evidence("Stages", RETRAIN, _render_stages, (f"{RESULT}.json",), tell_options=_tell_options),
    Evidence(
        "Cross-validation",
        RETRAIN,
        _render_folds,
        (f"{POOLED}.json", f"{POOLED}/*.json"),
        options="--folds 5",
        tell_options=_tell_options,
    ),
    Evidence(
        "Photographs",
        f"nailtool evaluate --data PHOTOS --weights FILE --variants NAME --out FOLDER/{PHOTOGRAPHS}",
        _render_measured,
        (f"{PHOTOGRAPHS}/*.json",),
    ),
    Evidence(
        "Rendered hands",
        f"nailtool evaluate --weights FILE --variants NAME --out FOLDER/{RENDERED}",
        _render_measured,
        (f"{RENDERED}/*.json",),
    ),
    Evidence(
        "Loss and network",
        "nailtool ablate --variant VARIANT --data PHOTOS --init FILE --out FOLDER/ablation",
        _render_ablation,
        ("ablation/ablation.json",),
    ),
    Evidence(
        "The decoder",
        "python -m benchmark.decoder_ablation --variant VARIANT --data PHOTOS --init FILE "
        "--out FOLDER/decoder",
        _render_choices,
        ("decoder/choices.json",),
    ),
    Evidence(
        "The encoder",
        "python -m benchmark.encoder_comparison --variant VARIANT --data PHOTOS --out FOLDER/encoders",
        _render_choices,
        ("encoders/choices.json",),
    ),
)


def render_family(folder: Path, name: str) -> str:
    """Markdown of all evidence in ``folder``; what is missing is named with the command that measures it.

    Raises:
        NailtoolError: the folder holds none.
        ArtifactError: a file is damaged or holds other facts.
    """
    there = [evidence for evidence in EVIDENCE if evidence.find(folder)]
    if not there:
        raise NailtoolError(
            f"{folder}: holds none of {', '.join(e.patterns[0] for e in EVIDENCE)}.",
            hint="Name the --out folder of `nailtool retrain`.",
        )
    result = folder / f"{RESULT}.json"
    plan = str(read_fact(result, RetrainingResult).plan["name"]) if result.is_file() else "PLAN"
    lines = [
        f"# How {name} was trained and chosen",
        "",
        "Written by `nailtool card` from the facts beside it; do not edit. Points and degrees with 95 %",
        "bootstrap intervals.",
        "",
    ]
    for evidence in there:
        lines += [f"## {evidence.title}", "", f"By `{evidence.tell_command(plan, folder)}`.", ""]
        lines += [evidence.render(evidence.find(folder)).strip(), ""]
    missing = [evidence for evidence in EVIDENCE if evidence not in there]
    if missing:
        lines += ["## Not measured here", ""]
        lines += [f"- {one.title}: `{one.tell_command(plan, folder)}`" for one in missing] + [""]
    return "\n".join(lines)


def write_family(folder: Path, out: Path, name: str) -> list[Path]:
    """Copy the evidence in ``folder`` to ``out`` (unless they are one) and write ``out/README.md``.

    Returns the files written, the card last. Raises as ``render_family``.
    """
    from nailcore.storage import replacing, write_text

    card = render_family(folder, name)  # before anything is written
    written = []
    if out.resolve() != folder.resolve():
        for evidence in EVIDENCE:
            found = [out / source.relative_to(folder) for source in evidence.find(folder)]
            for target in found:
                with replacing(target) as scratch:
                    shutil.copyfile(folder / target.relative_to(out), scratch)
            for stale in set(evidence.find(out)) - set(found) if found else ():
                stale.unlink()  # of an earlier card: this one does not tell of it
            written += found
    write_text(out / CARD, card)
    return [*written, out / CARD]
