"""The recovery ladder: what each precision costs and buys, from verdicts alone, and which file is best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nailcore.gate_facts import GateVerdict, SpeedRatio

KINDS = ("onnx", "tflite", "tfjs", "coreml")  # in the order of every table; others follow by name
REFERENCE = "fp32"
ABOUT_AS_SMALL = 1.05  # of the smallest file's bytes: then the better mask decides


@dataclass(frozen=True)
class LadderRow:
    """One file, as every table shows it."""

    verdict: GateVerdict
    cpu_ms: float | None  # fp32's own time comes from the run that its siblings were compared in
    speed: SpeedRatio | None  # the first device's; None for fp32, and where it was not measured

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return self.verdict.artifact.recipe

    @property
    def is_reference(self) -> bool:
        """Whether this is what the others are compared with."""
        return self.recipe == REFERENCE

    @property
    def short_reasons(self) -> list[str]:
        """Why it may not ship, in a word or two each; empty when it may, or when that is not known."""
        return list_short_reasons(self.verdict)


@dataclass(frozen=True)
class LadderGroup:
    """The rungs of one variant and target."""

    variant: str
    kind: str
    rows: tuple[LadderRow, ...]
    best: GateVerdict | None  # the file to ship

    @property
    def device(self) -> str:
        """Where the speeds were measured, in words; "" when none was."""
        speed = next((row.speed for row in self.rows if row.speed), None)
        if speed is None:
            return ""
        threads = f", {speed.threads} thread{'s' if speed.threads != '1' else ''}" if speed.threads else ""
        return f"{speed.runtime}{threads}, {speed.machine.cpu}"


def group_rungs(verdicts: Sequence[GateVerdict]) -> list[LadderGroup]:
    """Verdicts by variant and target: deep and large variants first, fp32 first, then rung by rung."""
    groups: dict[tuple[str, str], list[GateVerdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.artifact.kind, verdict.artifact.variant), []).append(verdict)
    ordered = sorted(groups, key=lambda key: (rank_variant(key[1]), rank_kind(key[0])))
    return [_make_group(variant, kind, groups[kind, variant]) for kind, variant in ordered]


def _make_group(variant: str, kind: str, verdicts: Sequence[GateVerdict]) -> LadderGroup:
    ranked = sorted(verdicts, key=rank_rung)
    rows = [LadderRow(v, _find_cpu_ms(v, ranked), v.speed[0] if v.speed else None) for v in ranked]
    return LadderGroup(variant, kind, tuple(rows), choose_file(ranked))


def _find_cpu_ms(verdict: GateVerdict, siblings: Sequence[GateVerdict]) -> float | None:
    if verdict.speed:
        return verdict.speed[0].cpu_ms
    for other in siblings:
        if other.speed and other.fp32 and other.fp32.sha256 == verdict.artifact.sha256:
            return other.speed[0].fp32_cpu_ms
    return None


def rank_kind(kind: str) -> tuple[int, str]:
    """Sort key of a target."""
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


def rank_variant(name: str) -> tuple[list[int], str]:
    """Sort key of a variant's name: larger numbers first, ``nail55-480`` before ``nail43-480``."""
    return ([-int(number) for number in re.findall(r"\d+", name)], name)


def rank_rung(verdict: GateVerdict) -> tuple[bool, bool, bool, int, float, str]:
    """Sort key of a file: fp32, other floats, the rungs upwards, then the rest from large to small."""
    recipe = verdict.artifact.recipe
    is_float = recipe.startswith("fp")
    size = 0.0 if verdict.rung else -float(verdict.artifact.size_bytes)
    return (recipe != REFERENCE, not is_float, verdict.rung == 0, verdict.rung, size, recipe)


def choose_file(verdicts: Sequence[GateVerdict]) -> GateVerdict | None:
    """The file to ship of one variant and target; None when none of them is shippable.

    Where a quantized file bought compute, the fastest: of those that are as fast within their intervals,
    the one with the least upper end of the drop. Where none did, the smallest, chosen likewise.
    """
    good = [v for v in verdicts if v.decision == "shippable"]
    fast = [v for v in good if v.bought in ("compute", "both") and v.speed]
    if fast:
        quickest = min(v.speed[0].ratio.value for v in fast)
        bound = next(v.speed[0].ratio.high for v in fast if v.speed[0].ratio.value == quickest)
        return min((v for v in fast if v.speed[0].ratio.low <= bound), key=_rank_drop)
    if not good:
        return None
    smallest = min(v.artifact.size_bytes for v in good)
    return min((v for v in good if v.artifact.size_bytes <= ABOUT_AS_SMALL * smallest), key=_rank_drop)


def _rank_drop(verdict: GateVerdict) -> tuple[float, int, str]:
    drop = verdict.accuracy.drop_points.high if verdict.accuracy else float("inf")
    return (drop, verdict.artifact.size_bytes, verdict.artifact.recipe)


def list_short_reasons(verdict: GateVerdict) -> list[str]:
    """Why a file may not ship, in a word or two each."""
    if verdict.decision != "not shippable":
        return []
    reasons = ["parity failed"] if verdict.parity == "failed" else []
    accuracy, images, rules = verdict.accuracy, verdict.images, verdict.rules
    judged = accuracy is not None and images is not None and images.count >= rules.min_images
    if accuracy and judged and not accuracy.drop_points.high <= rules.max_drop_points:
        reasons.append("drop")
    for speed in verdict.speed:
        if verdict.integer and not speed.ratio.high < 1:
            reasons.append("not faster")
        elif speed.ratio.low > rules.slower_cpu_ratio:
            reasons.append("slower")
    return reasons
