"""The gate: may a file ship, and what did its precision buy? A pure function of facts, bound to hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.speed import compare_speed
from nailcore.artifact import Artifact
from nailcore.facts import AccuracyDrop, ArtifactRef, ImageSet, ParityResult
from nailcore.gate_facts import Bought, Decision, GateRules, GateVerdict, SpeedRatio, SpeedRun, Unmeasured

REFERENCE = "fp32"


@dataclass
class _Findings:
    """What the figures come to, sentence by sentence."""

    refusals: list[str] = field(default_factory=list)
    unknowns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def decision(self) -> Decision:
        """A refusal stands whatever else is not known."""
        if self.refusals:
            return "not shippable"
        return "undecided" if self.unknowns else "shippable"


def judge_file(
    artifact: Artifact,
    fp32: Artifact | None,
    parity: ParityResult | None,
    rules: GateRules,
    *,
    runs: Sequence[SpeedRun] = (),
    unmeasured: Sequence[Unmeasured] = (),
) -> GateVerdict:
    """Judge one file by its parity on labelled images and by its speed.

    Not shippable: a failed parity; a drop of nail IoU whose paired 95 % interval reaches beyond the limit;
    integer arithmetic that is not surely faster than fp32 where its speed was measured; a file of any kind
    that is surely slower. What is not known is never taken for good: it leaves the verdict open, or, where
    nobody asked for it, is noted. A fact about another file than ``artifact`` counts as none.

    Args:
        artifact: the file's manifest; its recipe is read from it.
        fp32: manifest of the same variant and target in fp32; None for fp32 itself, or when it is missing.
        parity: by the target's usual engine.
        rules: the limits.
        runs: interleaved latency runs, one per device that was asked for.
        unmeasured: devices that were asked for and could not time it.
    """
    findings, recipe = _Findings(), _read_recipe(artifact)
    integer = not str(recipe.get("compute_dtype", "float32")).startswith("float")
    usable = _find_usable_parity(artifact, parity, findings)
    if usable is not None:
        _judge_parity(usable, rules, findings)
    speed, unknown = _compare_speeds(artifact, fp32, runs, findings)
    unknown += unmeasured
    is_reference = artifact.recipe == REFERENCE
    if not is_reference:
        _judge_speed(speed, unknown, rules, findings, integer=integer)
        if fp32 is None:
            findings.unknowns.append("There is no fp32 file beside it, so nothing tells what it bought.")
    size_ratio = artifact.size_bytes / fp32.size_bytes if fp32 and fp32.size_bytes else None
    return GateVerdict(
        artifact=ArtifactRef.of(artifact),
        fp32=ArtifactRef.of(fp32) if fp32 else None,
        weights_sha256=usable.weights_sha256 if usable else "",
        summary=str(recipe.get("summary", "")),
        rung=int(recipe.get("rung", 0)),
        integer=integer,
        decision=findings.decision,
        refusals=findings.refusals,
        unknowns=findings.unknowns,
        notes=findings.notes,
        bought=find_bought(size_ratio, speed, rules),
        size_ratio=size_ratio,
        speed=speed,
        unmeasured=unknown,
        parity=usable.status if usable else "unknown",
        engine=usable.engine if usable else "",
        images=usable.images if usable else None,
        flipped_permille=usable.flipped_permille if usable else None,
        accuracy=usable.accuracy if usable else None,
        rules=rules,
    )


def find_bought(size_ratio: float | None, speed: Sequence[SpeedRatio], rules: GateRules) -> Bought | None:
    """What a file bought against its fp32: a speed that was not measured bought nothing."""
    if size_ratio is None:
        return None
    size = size_ratio <= rules.bought_size_ratio
    compute = bool(speed) and all(s.ratio.high <= rules.bought_cpu_ratio for s in speed)
    labels: dict[tuple[bool, bool], Bought] = {
        (True, True): "both",
        (True, False): "size",
        (False, True): "compute",
        (False, False): "neither",
    }
    return labels[size, compute]


def _read_recipe(artifact: Artifact) -> dict[str, Any]:
    recipe = artifact.made_by.config.get("recipe", {})
    return recipe if isinstance(recipe, dict) else {}


def _find_usable_parity(
    artifact: Artifact, parity: ParityResult | None, findings: _Findings
) -> ParityResult | None:
    if parity is None:
        findings.unknowns.append("Its parity is not known.")
    elif parity.artifact.sha256 != artifact.sha256:
        findings.unknowns.append(
            f"Its parity was measured on another file (SHA-256 {parity.artifact.sha256[:12]}…, this one is "
            f"{artifact.sha256[:12]}…)."
        )
    else:
        return parity
    return None


def _judge_parity(parity: ParityResult, rules: GateRules, findings: _Findings) -> None:
    label = parity.artifact.label
    if parity.status == "not executed":
        findings.unknowns.append(f"Not executed here in {parity.engine}: {parity.note.partition(chr(10))[0]}")
        return
    if parity.status == "failed":
        told = [sentence.removeprefix(f"{label}: ") for sentence in parity.failures]
        findings.refusals.append(f"Parity failed: {' '.join(told) or 'the fact names no figure.'}")
    if parity.accuracy is None:
        if parity.status == "passed":
            findings.unknowns.append("What it costs in nail IoU was not measured: check its parity again.")
        return
    _judge_drop(parity.accuracy, parity.images, rules, findings)


def _judge_drop(accuracy: AccuracyDrop, images: ImageSet, rules: GateRules, findings: _Findings) -> None:
    drop, count = accuracy.drop_points, len(accuracy.per_image)
    figures = (
        f"{drop.value:.2f} points of nail IoU lost, paired 95 % interval [{drop.low:.2f}, {drop.high:.2f}] "
        f"over {count} {'synthetic images' if images.synthetic else 'photographs'}"
    )
    if count < rules.min_images:
        findings.unknowns.append(f"{figures}: too few for an interval (at least {rules.min_images}).")
    elif not drop.high <= rules.max_drop_points:
        findings.refusals.append(f"{figures}: the upper end crosses the limit of {rules.max_drop_points:g}.")
    if images.part_of_sha256:
        findings.notes.append(f"Its engine is slow and saw a part of the images alone: {images.name}.")
    if images.synthetic:
        findings.notes.append("Measured on synthetic images: says nothing about accuracy on photographs.")


def _compare_speeds(
    artifact: Artifact, fp32: Artifact | None, runs: Sequence[SpeedRun], findings: _Findings
) -> tuple[list[SpeedRatio], list[Unmeasured]]:
    speed: list[SpeedRatio] = []
    unknown: list[Unmeasured] = []
    if artifact.recipe == REFERENCE or fp32 is None:
        return speed, unknown
    for run in runs:
        found = compare_speed(run, artifact.sha256, fp32.sha256)
        if isinstance(found, SpeedRatio):
            speed.append(found)
        else:
            unknown.append(Unmeasured(device=run.device, reason=found, asked_for=True))
    return speed, unknown


def _judge_speed(
    speed: Sequence[SpeedRatio],
    unknown: Sequence[Unmeasured],
    rules: GateRules,
    findings: _Findings,
    *,
    integer: bool,
) -> None:
    for one in speed:
        figures = (
            f"{one.ratio.value:.2f} [{one.ratio.low:.2f}, {one.ratio.high:.2f}] of its fp32's CPU-ms on "
            f"{one.device} ({one.cpu_ms:.1f} against {one.fp32_cpu_ms:.1f})"
        )
        if integer and not one.ratio.high < 1:
            findings.refusals.append(f"Integer arithmetic that is not faster: {figures}.")
        elif one.ratio.low > rules.slower_cpu_ratio:
            findings.refusals.append(f"Slower than its fp32: {figures}.")
    for lacking in unknown:
        sentence = f"Its speed on {lacking.device} is not known: {lacking.reason}."
        (findings.unknowns if lacking.asked_for else findings.notes).append(sentence)
    if not speed and not unknown:
        findings.notes.append("Its speed was not measured: no device was asked for.")
