"""The table of the gate: which files may ship, what each bought, and why one may not."""

from __future__ import annotations

from collections.abc import Sequence

from nailcore.errors import MissingToolError
from nailcore.gate_facts import GateVerdict, SpeedRatio
from nailtool.terminal import Terminal, format_bytes

COLUMNS = ("artefact", "verdict", "drop, points", "flip ‰", "size", "× fp32", "CPU-ms × fp32", "bought")


def show_gates(terminal: Terminal, verdicts: Sequence[GateVerdict]) -> None:
    """One row per judged file, then what is to be said of each."""
    if not verdicts:
        return
    terminal.table("The gate", COLUMNS, map(_row, verdicts), right=COLUMNS[2:7])
    for verdict in verdicts:
        for sentence in verdict.notes:
            terminal.show(f"{verdict.artifact.label}: {sentence}")
    limits = sorted({f"{verdict.rules.max_drop_points:g}" for verdict in verdicts})
    terminal.show(
        "drop: nail-IoU points lost against the float network, with the paired 95 % interval over images; "
        f"the upper end may reach {' or '.join(limits)}. CPU-ms: median ratio over the rounds of one run."
    )


def decide_exit(terminal: Terminal, verdicts: Sequence[GateVerdict], code: int) -> int:
    """Say which files may not ship; 1 when there is one, else ``code``, else 3 when a verdict stays open."""
    for verdict in verdicts:
        if verdict.decision == "not shippable":
            terminal.complain(f"{verdict.artifact.label} is not shippable:", " ".join(verdict.refusals))
        elif verdict.decision == "undecided":
            terminal.complain(f"{verdict.artifact.label} is undecided:", " ".join(verdict.unknowns))
    decisions = {verdict.decision for verdict in verdicts}
    if "not shippable" in decisions:
        return 1
    return code or (MissingToolError.exit_code if "undecided" in decisions else 0)


def _row(verdict: GateVerdict) -> tuple[str, ...]:
    accuracy, ratio = verdict.accuracy, verdict.size_ratio
    return (
        verdict.artifact.label,
        verdict.decision,
        accuracy.drop_points.tell(2) if accuracy else "–",
        "–" if verdict.flipped_permille is None else f"{verdict.flipped_permille:.2f}",
        format_bytes(verdict.artifact.size_bytes),
        "–" if ratio is None else f"{ratio:.3f}",
        "; ".join(map(_write_speed, verdict.speed)) or "–",
        verdict.bought_text,
    )


def _write_speed(speed: SpeedRatio) -> str:
    return speed.ratio.tell(2)
