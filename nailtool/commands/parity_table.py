"""The tables of `nailtool parity-check`: verdicts in task units, one table per engine, 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from nailcore.facts import ParityResult
from nailtool.terminal import Terminal

COLUMNS = (
    "artefact",
    "verdict",
    "flip ‰",
    "mask IoU",
    "edge IoU",
    "moved px",
    "finger",
    "angle °",
    "max-abs",
)
ACCURACY_COLUMNS = ("artefact", "engine", "mIoU", "nail IoU", "lost [95 %]", "images")


def show_parity(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    """One table per engine that executed something, then what was not executed and why."""
    engines = dict.fromkeys(fact.engine for fact in facts)
    for engine in engines:
        executed = [fact for fact in facts if fact.engine == engine and fact.status != "not executed"]
        if executed:
            terminal.table(_title(executed), COLUMNS, map(_row, executed), right=COLUMNS[2:])
            _show_images(terminal, executed)
    _explain_columns(terminal, facts)
    _show_accuracy(terminal, facts)
    _show_gates(terminal, facts)
    _show_unexecuted(terminal, facts)


def _title(facts: Sequence[ParityResult]) -> str:
    fact = next((fact for fact in facts if fact.outputs), facts[0])
    title = f"{fact.engine}: {fact.artifact.kind} in {fact.runtime}"
    if fact.software_gpu:
        title += ", a GPU computed by the processor"
    return title + (", not Core ML" if fact.engine == "mil-reference" else "")


def _show_images(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    sets = {fact.images.sha256: fact.images for fact in facts}
    for images in sets.values():
        kind = "synthetic images" if images.synthetic else "photographs"
        terminal.show(f"On {images.count} {kind}: {images.name}.")


def _row(fact: ParityResult) -> tuple[str, ...]:
    worst = max((output.max_abs for output in fact.outputs), default=None)
    finger = _write(fact.finger_agreement, ".3f")
    angle = _write(fact.direction_error_p90_deg, ".2f")
    lone = (fact.blobs_appeared or 0) + (fact.blobs_vanished or 0)
    return (
        f"{fact.artifact.variant} {fact.artifact.recipe}",  # the engine above tells the kind
        fact.status,
        _write(fact.flipped_permille, ".3f"),
        _write(fact.mask_iou, ".4f"),
        _write(fact.boundary_iou, ".4f"),
        _write(fact.contour_shift_px, ".1f") + (f" +{lone}" if lone else ""),
        finger if "finger" in fact.heads_trained or finger == "–" else f"({finger})",
        angle if "direction" in fact.heads_trained or angle == "–" else f"({angle})",
        _write(worst, ".1e"),
    )


def _write(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


def _explain_columns(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    executed = [fact for fact in facts if fact.outputs]
    if not executed:
        return
    terminal.show(
        "flip: mask pixels that change side. edge IoU: of the 2 px bands inside the contours. moved px: "
        "furthest a contour moved, in pixels of the output; +n: blobs or holes that appeared or vanished. "
        "finger: same class, angle: p90 of the direction's error, both inside the network's nails."
    )
    heads = [
        head for head in ("finger", "direction") if any(head not in fact.heads_trained for fact in executed)
    ]
    if heads:
        names = " and ".join(heads)
        terminal.show(f"( ): head untrained, not judged ({names}); train it to have these figures judged.")


def _show_accuracy(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    """What the same executions say against the labels: how much a file segments worse than the network."""
    if not any(fact.accuracy for fact in facts):
        return
    terminal.table(
        "Against the labels: points of 100",
        ACCURACY_COLUMNS,
        (
            (
                f"{fact.artifact.label}",
                fact.engine,
                f"{100 * fact.accuracy.miou.value:.2f}",
                f"{100 * fact.accuracy.nail_iou.value:.2f}",
                fact.accuracy.drop_points.tell(2),
                str(fact.images.count),
            )
            for fact in facts
            if fact.accuracy
        ),
        right=ACCURACY_COLUMNS[2:],
    )
    terminal.show(
        "lost: nail IoU of the float network less that of the file; interval of 95 %, images in pairs. "
        "Shown, not judged: the gate of `build-variants` does."
    )


def _show_gates(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    """Passed gates are counted; a failed one is a failure, and told as such with all that it found."""
    gated = [fact for fact in facts if fact.gates]
    if gated:
        good = sum(all(gate.passed for gate in fact.gates) for fact in gated)
        names = ", ".join(dict.fromkeys(gate.name for fact in gated for gate in fact.gates))
        kinds = ", ".join(sorted({fact.artifact.kind for fact in gated}))
        terminal.show(f"Gates of {kinds} ({names}): all passed by {good} of {len(gated)} files.")


def _show_unexecuted(terminal: Terminal, facts: Sequence[ParityResult]) -> None:
    reasons: dict[tuple[str, str], list[ParityResult]] = {}
    for fact in facts:
        if fact.status == "not executed":
            reasons.setdefault((fact.engine, _generalise(fact)), []).append(fact)
    for (engine, reason), members in reasons.items():
        checked = sum(len(fact.checks) for fact in members)
        good = sum(check.passed for fact in members for check in fact.checks)
        structure = f" ({good}/{checked} structural checks passed)" if checked else ""
        terminal.show(f"not run: {engine}, {len(members)} artefacts: {reason}{structure}")


def _generalise(fact: ParityResult) -> str:
    """Without the artefact's own names, so that equal sentences about many files are said once."""
    label, file = fact.artifact.label, fact.artifact.file
    return fact.note.removeprefix(f"{label}: ").replace(file, "the file").replace("\n", " ")
