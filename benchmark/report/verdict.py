"""The verdict: one plain sentence, badges that count what it rests on, and each failure in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.report.bundle import ReportInput
from benchmark.report.tables import MIL_REFERENCE, FileRow, ParityState, VariantRow, list_image_sets
from benchmark.report.wording import join_words, write_count_of

Tone = Literal["good", "bad", "warn", "plain"]


@dataclass(frozen=True)
class Badge:
    """A short counted fact; the tone is never the only carrier of meaning."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class Failure:
    """One sentence about one file that is not what it should be."""

    label: str
    sentence: str
    engines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the report comes to."""

    tone: Tone
    sentence: str
    badges: tuple[Badge, ...]
    failures: tuple[Failure, ...]
    synthetic: tuple[str, ...]  # names of the rendered image sets that figures rest on


def reach_verdict(report: ReportInput, variants: Sequence[VariantRow]) -> Verdict:
    """Judge a report by its parity results, and by what could not be read."""
    files = [file for variant in variants for file in variant.files]
    states = Counter(file.parity_state for file in files)
    failures = [failure for file in files for failure in _list_failures(file)]
    failures += _list_stage_failures(report)
    failed = list(dict.fromkeys(failure.label for failure in failures))
    tone, sentence = _say(states, failed)
    refused = [g.artifact.label for g in report.gates if g.decision == "not shippable"]
    held = [label for label in refused if label not in failed]
    if held:
        word = "more " if failed else ""
        sentence += f" The gate refuses {write_count_of(len(held), word + 'file')}."
        tone = "warn" if tone == "good" else tone
    alone = sum({parity.engine for parity in file.executed} == {MIL_REFERENCE} for file in files)
    if alone:
        which = write_count_of(alone, "file was", "files were")
        sentence += f" {which} executed by the MIL reference alone, not by Core ML."
    if report.damaged:
        damaged = write_count_of(len(report.damaged), "file is", "files are")
        sentence += f" {damaged} damaged or missing and not used."
        tone = "bad"
    synthetic = tuple(images.name for images in list_image_sets(report) if images.synthetic)
    return Verdict(tone, sentence, tuple(_list_badges(report, states, synthetic)), tuple(failures), synthetic)


def _say(states: Counter[ParityState], failed: Sequence[str]) -> tuple[Tone, str]:
    executed = states["passed"] + states["failed"]
    unexecuted = states["not executed"] + states["not checked"]
    rest = f" {write_count_of(unexecuted, 'file was', 'files were')} not executed here." if unexecuted else ""
    if not executed + unexecuted:
        return "plain", "No built file was found, so there is nothing to judge."
    if failed:
        which, who = join_words(list(failed), most=4), "it" if len(failed) == 1 else "they"
        return "bad", f"Do not ship {which}: {who} failed the checks.{rest}"
    if not executed:
        return "plain", f"No file has been executed against the trained network yet.{rest}"
    which = "The one executed file computes" if executed == 1 else f"All {executed} executed files compute"
    return "good", f"{which} what the trained network computes, within the limits.{rest}"


def _list_failures(file: FileRow) -> list[Failure]:
    """Failed figures, and failed structural checks and gates whatever the status says."""
    label = file.artifact.label
    engines: dict[str, list[str]] = {}  # sentence -> engines: several say the same of a damaged file
    for parity in file.parities:
        # The sentences name their file already; here it stands in front of each.
        sentences = [sentence.removeprefix(f"{label}: ") for sentence in parity.failures]
        told = " ".join(sentences)
        for gate in parity.gates:
            if not gate.passed and gate.name not in told:
                sentences.append(f"Gate '{gate.name}' failed: {gate.detail}")
        if parity.status == "failed" and not sentences:
            sentences.append("Failed parity; the fact names no figure.")
        for sentence in sentences:
            engines.setdefault(sentence, []).append(parity.engine)
    told = " ".join(engines)
    for check in file.checks:
        if not check.passed and check.name not in told:
            engines[f"Structural check '{check.name}' failed: {check.detail}"] = []
    return [Failure(label, sentence, tuple(names)) for sentence, names in engines.items()]


def _list_stage_failures(report: ReportInput) -> list[Failure]:
    """What surrounds the network is shipped as well: an implementation of ours that fails is a failure."""
    return [
        Failure(
            f"{result.variant} {stage.stage}",
            f"{stage.implementation}: {stage.cause + ': ' if stage.cause else ''}{stage.detail}",
            (stage.engine,),
        )
        for result in report.preposts
        for stage in result.stages
        if stage.judged and stage.passed is False
    ]


def _list_badges(report: ReportInput, states: Counter[ParityState], synthetic: Sequence[str]) -> list[Badge]:
    badges = [
        Badge("good" if states["passed"] else "plain", f"{states['passed']} parity passed"),
        Badge("bad" if states["failed"] else "plain", f"{states['failed']} failed"),
        Badge("plain", f"{states['not executed']} not executed"),
    ]
    if states["not checked"]:
        badges.append(Badge("warn", f"{states['not checked']} not checked"))
    decided = Counter(verdict.decision for verdict in report.gates)
    invalid = sum(bool(m.invalid) for m in report.latency)
    valid = len(report.latency) - invalid
    counts: tuple[tuple[int, Tone, str], ...] = (
        (decided["shippable"], "good", f"{decided['shippable']} shippable"),
        (decided["not shippable"], "bad", f"{decided['not shippable']} not shippable"),
        (decided["undecided"], "warn", f"{decided['undecided']} undecided"),
        (valid, "plain", write_count_of(valid, "latency", "latencies")),
        (invalid, "warn", write_count_of(invalid, "invalid latency", "invalid latencies")),
        (len(report.stale), "warn", f"{len(report.stale)} stale, left out"),
        (len(report.damaged), "bad", f"{len(report.damaged)} damaged"),
    )
    badges += [Badge(tone, text) for number, tone, text in counts if number]
    if synthetic:
        badges.append(Badge("warn", "synthetic images"))
    return badges
