"""`nailtool parity-check`: does every artefact still compute what the trained network computes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import (
    DataOption,
    ForceOption,
    JobsOption,
    JsonOption,
    OutOption,
    QuietOption,
    RecipesOption,
    TargetsOption,
    VariantsOption,
    find_units,
    load_registry,
    note_data,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.facts import ParityResult


@guarded
def parity_check(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    targets: TargetsOption = None,
    recipes: RecipesOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every built artefact with the trained network on held-out images.

    Exit code 1 when an artefact fails; 3 when nothing could be executed here, or tfjs was asked for by name
    and there is no browser. Unchanged artefacts keep the verdict they have.

    Example: nailtool parity-check --data photos --targets onnx
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.errors import ArtifactError, MissingToolError
    from nailcore.facts import ParityResult, read_fact
    from nailtool.pipeline import Order, check_data, check_parity, describe_results, find_built

    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch)
    units = find_units(order, variants, targets, recipes)
    built = find_built(units)
    folder = check_data(data)
    note_data(terminal, folder)
    results = check_parity(order, built, folder)
    by_stage = {result.stage.name: result for result in results}
    facts = [
        read_fact(order.plan.parity_fact(unit), ParityResult)
        for unit in built
        if by_stage[f"parity {unit.name}"].status in ("built", "cached")
    ]
    _show_table(terminal, facts)
    missing = [unit.name for unit in units if unit not in built]
    if missing:
        terminal.note(f"Not built, hence not checked: {', '.join(missing)}.")
    failed = [fact for fact in facts if fact.status == "failed"]
    terminal.emit(
        {
            "passed": sum(fact.status == "passed" for fact in facts),
            "failed": len(failed),
            "not_executed": sum(fact.status == "not executed" for fact in facts),
            "not_built": missing,
            "parity": [fact.model_dump(mode="json") for fact in facts],
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    for fact in failed:
        label = fact.artifact.label
        terminal.complain(f"{label} failed:", " ".join(f.removeprefix(f"{label}: ") for f in fact.failures))
    # A file that is not the one its manifest describes is a negative verdict, too.
    unusable = any(isinstance(result.error, ArtifactError) for result in results)
    lacking = _complain_of_gaps(terminal, facts, targets)
    if failed or code:
        raise typer.Exit(1 if failed or unusable else code)
    if lacking:
        raise typer.Exit(MissingToolError.exit_code)


def _complain_of_gaps(terminal: Terminal, facts: Sequence[ParityResult], targets: str | None) -> bool:
    """Say what was not executed; True when the command did not do what it was asked for."""
    gaps = [fact for fact in facts if fact.status == "not executed"]
    if not gaps:
        return False
    asked = targets is not None and "tfjs" in [name.strip() for name in targets.split(",")]
    lacking = len(gaps) == len(facts) or (asked and any(fact.artifact.kind == "tfjs" for fact in gaps))
    kinds = ", ".join(sorted({fact.artifact.kind for fact in gaps}))
    message = f"{len(gaps)} of {len(facts)} artefacts ({kinds}): their figures are not known."
    if lacking:
        notes = dict.fromkeys(_generalise(fact, fact.note) for fact in gaps if fact.note)
        terminal.complain("Not executed:", message, " ".join(notes))
    else:
        terminal.note(f"Not executed: {message}")
    return lacking


def _show_table(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    terminal.table(
        "Parity with the trained network",
        ("artefact", "verdict", "worst max-abs", "worst PSNR dB", "flipped ‰", "mask IoU", "runtime", "note"),
        (_row(fact) for fact in facts),
        right=("worst max-abs", "worst PSNR dB", "flipped ‰", "mask IoU"),
    )
    if facts:
        images = facts[0].images
        kind = "synthetic images" if images.synthetic else "photographs"
        terminal.show(f"On {images.count} {kind}: {images.name}.")
    reasons: dict[str, list[str]] = {}
    for fact in facts:
        if fact.status == "not executed" and fact.note:
            reasons.setdefault(_generalise(fact, fact.note), []).append(fact.artifact.kind)
    for reason, kinds in reasons.items():
        names = ", ".join(sorted(set(kinds)))
        terminal.show(f"Not executed, {len(kinds)} of {names}: {reason}")


def _generalise(fact: ParityResult, text: str) -> str:
    """Without the artefact's own names, so that equal sentences about many files are said once."""
    label, file = fact.artifact.label, fact.artifact.file
    return text.removeprefix(f"{label}: ").removeprefix("not executed yet: ").replace(file, "the file")


def _row(fact: ParityResult) -> tuple[str, ...]:
    worst = max((output.max_abs for output in fact.outputs), default=None)
    psnr = min((o.psnr_db for o in fact.outputs if o.psnr_db is not None), default=None)
    checks = sum(check.passed for check in fact.checks)
    note = "see below" if fact.failures else ""
    if fact.status == "not executed":
        note = (
            f"not executed yet; {checks}/{len(fact.checks)} structural checks" if fact.checks else "see below"
        )
    return (
        fact.artifact.label,
        fact.status,
        "–" if worst is None else f"{worst:.2e}",
        "–" if psnr is None else f"{psnr:.1f}",
        "–" if fact.flipped_permille is None else f"{fact.flipped_permille:.3f}",
        "–" if fact.mask_iou is None else f"{fact.mask_iou:.5f}",
        fact.runtime,
        note,
    )
