"""Read manifests and facts below an output folder, and keep only what speaks of the files there now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from benchmark.report.bundle import DamagedFile, ReportContext, ReportInput, StaleFact
from benchmark.report.lineage import find_weights_sha256, index_by_file
from benchmark.report.overlays import load_heatmaps, load_overlays
from nailcore.artifact import MANIFEST_SUFFIX, Artifact, BrokenParent, read_manifest
from nailcore.divergence_facts import BisectResult, ConversionStages
from nailcore.errors import ArtifactError
from nailcore.facts import (
    AccuracyResult,
    ArtifactRef,
    Fact,
    Measurement,
    ParityResult,
    PrePostResult,
    Skipped,
    read_fact,
)
from nailcore.gate_facts import GateVerdict

ReadT = TypeVar("ReadT")
FactT = TypeVar("FactT", bound=Fact)
Label = tuple[str, str, str]  # variant, kind, recipe


class Reader:
    """Reads files below one folder; what cannot be read is named in ``damaged``, what is old in ``stale``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[DamagedFile] = []
        self.stale: list[StaleFact] = []

    def name(self, path: Path) -> str:
        """The path below the folder: reports carry no path of the machine."""
        return path.relative_to(self.root).as_posix()

    def find(self, pattern: str) -> list[Path]:
        """Sorted files; those below hidden folders are another process's unfinished writes."""
        paths = sorted(self.root.glob(pattern))
        return [p for p in paths if not any(part.startswith(".") for part in p.relative_to(self.root).parts)]

    def mark_damaged(self, path: Path, problem: str) -> None:
        """Name a file that cannot be used."""
        self.damaged.append(DamagedFile(file=self.name(path), problem=problem))

    def mark_stale(self, path: Path, what: str, reason: str) -> None:
        """Name a fact that speaks of something else than what is there now."""
        self.stale.append(StaleFact(what=what, file=self.name(path), reason=reason))

    def read(self, path: Path, read: Callable[[Path], ReadT]) -> ReadT | None:
        """One file, or None after naming it as damaged."""
        try:
            return read(path)
        except ArtifactError as error:
            self.mark_damaged(path, _name_problem(error))
        except OSError as error:
            self.mark_damaged(path, f"cannot be read: {error.strerror}")
        return None

    def read_facts(self, pattern: str, kind: type[FactT]) -> Iterator[tuple[Path, FactT]]:
        """All readable facts of one kind with their paths."""
        for path in self.find(pattern):
            fact = self.read(path, lambda p: read_fact(p, kind))
            if fact is not None:
                yield path, fact


def _name_problem(error: ArtifactError) -> str:
    """A short reason: the full message carries this machine's paths and every value it met."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return "not UTF-8 text" if isinstance(cause, UnicodeDecodeError) else "cannot be read"
    first = cause.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    more = f" (and {cause.error_count() - 1} more problems)" if cause.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"


def collect_facts(out_dir: Path, context: ReportContext) -> ReportInput:
    """Read everything below an output folder that describes the artefacts there now.

    A fact about another file than the current manifest describes, about other weights or measured on
    other images is set aside in ``stale``; a damaged file is named in ``damaged``. Neither is ever used
    as a result.

    Raises:
        ArtifactError: the folder does not exist.
    """
    if not out_dir.is_dir():
        raise ArtifactError(f"{out_dir}: no such folder.", hint="Run `nailtool build-variants` first.")
    reader = Reader(out_dir)
    artifacts = _collect_artifacts(reader)
    weights = _WeightsByFile(artifacts)
    accuracy = _collect_accuracy(reader, weights)
    parity = _collect_bound(reader, "facts/parity/*.json", ParityResult, weights)
    conversions = _collect_bound(reader, "facts/stages/*.json", ConversionStages, weights)
    bisections = _collect_bound(reader, "facts/divergence/*.json", BisectResult, weights)
    preposts = _collect_preposts(reader, weights)
    wanted = _choose_images(context, [*_strip(accuracy), *_strip(parity)])
    accuracy_kept = _keep_images(reader, accuracy, wanted, lambda fact: f"Accuracy of {fact.variant}")
    parity_kept = _keep_images(reader, parity, wanted, _name_bound)
    overlays, left_out = load_overlays(
        _strip(accuracy_kept), artifacts.values(), out_dir / "facts/accuracy", reader
    )
    latency = _collect_bound(reader, "facts/latency/*/*.json", Measurement, weights)
    gates = _collect_gates(reader, weights, wanted)
    return ReportInput(
        context=context,
        artifacts=tuple(artifacts.values()),
        parity=_strip(parity_kept),
        conversions=_strip(_keep_images(reader, conversions, wanted, _name_bound)),
        bisections=_strip(_keep_images(reader, bisections, wanted, _name_bound)),
        preposts=_strip(
            _keep_images(reader, preposts, wanted, lambda fact: f"Pre-processing of {fact.variant}")
        ),
        gates=gates,
        latency=_strip(latency),
        accuracy=_strip(accuracy_kept),
        heatmaps=load_heatmaps(parity_kept, reader),
        overlays=overlays,
        overlays_left_out=left_out,
        skipped=tuple(fact for _, fact in reader.read_facts("facts/skipped/*.json", Skipped)),
        stale=tuple(reader.stale),
        damaged=tuple(reader.damaged),
    )


class _WeightsByFile:
    """The artefacts there now, and which weights each descends from."""

    def __init__(self, artifacts: dict[Label, Artifact]) -> None:
        self.artifacts = artifacts
        by_file = index_by_file(artifacts.values())
        found = {label: find_weights_sha256(a, by_file) for label, a in artifacts.items()}
        self.known = {label: sha for label, sha in found.items() if isinstance(sha, str)}

    def of_variant(self, variant: str) -> set[str]:
        """Hashes of all weights that files of a variant descend from."""
        return {sha256 for label, sha256 in self.known.items() if label[0] == variant}

    def explain_other(self, variant: str, sha256: str) -> str:
        """Why a fact about weights is not about those here; empty when it is."""
        known = self.of_variant(variant)
        if sha256 in known:
            return ""
        if not known:
            return "measured on other weights: no file of this variant here descends from known weights."
        now = " and ".join(f"{sha[:12]}…" for sha in sorted(known))
        return f"measured on other weights: SHA-256 {sha256[:12]}…, but the files here descend from {now}"


def _collect_artifacts(reader: Reader) -> dict[Label, Artifact]:
    artifacts: dict[Label, Artifact] = {}
    for path in reader.find(f"*/*{MANIFEST_SUFFIX}"):
        artifact = reader.read(path, read_manifest)
        if artifact is None:
            continue
        label = (artifact.variant, artifact.kind, artifact.recipe)
        if label in artifacts:
            reader.mark_damaged(path, f"a second manifest for {artifact.label}; the first was used")
        elif not (path.parent / artifact.file).exists():
            reader.mark_damaged(path, f"describes {artifact.file}, which is not there")
        else:
            artifacts[label] = artifact
    by_file = index_by_file(artifacts.values())
    for artifact in artifacts.values():
        weights = find_weights_sha256(artifact, by_file)
        if isinstance(weights, BrokenParent):
            path = reader.root / artifact.variant / f"{artifact.file}{MANIFEST_SUFFIX}"
            reader.mark_stale(path, f"File {artifact.label}", _explain_parent(weights))
    return artifacts


def _explain_parent(broken: BrokenParent) -> str:
    made_by = broken.artifact.made_by
    then = f"made from {made_by.parent} with SHA-256 {made_by.parent_sha256[:12]}…"
    now = f"that file is now {broken.found[:12]}…" if broken.found else "that file is gone"
    return f"{then}; {now}, so its accuracy is unknown until it is built again."


BoundT = TypeVar("BoundT", ParityResult, Measurement, ConversionStages, BisectResult)
SeenT = TypeVar("SeenT", AccuracyResult, ParityResult, ConversionStages, BisectResult, PrePostResult)
_NOUNS: dict[type[Fact], str] = {
    ParityResult: "Parity",
    Measurement: "Latency",
    ConversionStages: "Conversion",
    BisectResult: "First divergence",
}


def _name_bound(fact: ParityResult | Measurement | ConversionStages | BisectResult) -> str:
    """``Parity of nail55-480 tfjs fp16 in chromium-wasm``."""
    place = f" on {fact.device}" if isinstance(fact, Measurement) else ""
    if isinstance(fact, ParityResult | BisectResult) and fact.engine:
        place = f" in {fact.engine}"
    return f"{_NOUNS[type(fact)]} of {fact.artifact.label}{place}"


def _collect_bound(
    reader: Reader, pattern: str, kind: type[BoundT], weights: _WeightsByFile
) -> list[tuple[Path, BoundT]]:
    """Facts about the very files that lie here, compared with the weights they descend from."""
    kept: dict[str, tuple[Path, BoundT]] = {}
    for path, fact in reader.read_facts(pattern, kind):
        ref, what = fact.artifact, _name_bound(fact)
        label = (ref.variant, ref.kind, ref.recipe)
        reason = _explain_other_file(ref, weights.artifacts.get(label))
        # A failure stands whatever it was compared with: to have other weights is one of its reasons.
        failed = isinstance(fact, ParityResult) and fact.status == "failed"
        if not reason and not failed and not isinstance(fact, Measurement) and label in weights.known:
            reason = weights.explain_other(ref.variant, fact.weights_sha256)
        if not reason and isinstance(fact, ParityResult) and not fact.engine:
            reason = "it does not say which engine executed the file; an older nailtool wrote it."
        if reason:
            reader.mark_stale(path, what, reason)
        elif what in kept:
            reader.mark_damaged(path, f"a second fact: {what}; the first was used")
        else:
            kept[what] = (path, fact)
    return list(kept.values())


def _explain_other_file(ref: ArtifactRef, current: Artifact | None) -> str:
    """Why a fact is not about the file there now; empty when it is."""
    if current is None:
        return f"measured on another file: {ref.file} is not among the files here any more."
    if ref.sha256 != current.sha256:
        return (
            f"measured on another file: SHA-256 {ref.sha256[:12]}…, "
            f"but {current.file} is now {current.sha256[:12]}…"
        )
    return ""


def _collect_accuracy(reader: Reader, weights: _WeightsByFile) -> list[tuple[Path, AccuracyResult]]:
    current: list[tuple[Path, AccuracyResult]] = []
    for path, fact in reader.read_facts("facts/accuracy/*.json", AccuracyResult):
        reason = weights.explain_other(fact.variant, fact.weights_sha256)
        if reason:
            reader.mark_stale(path, f"Accuracy of {fact.variant}", reason)
        else:
            current.append((path, fact))
    return current


def _collect_preposts(reader: Reader, weights: _WeightsByFile) -> list[tuple[Path, PrePostResult]]:
    current: list[tuple[Path, PrePostResult]] = []
    for path, fact in reader.read_facts("facts/prepost/*.json", PrePostResult):
        reason = weights.explain_other(fact.variant, fact.weights_sha256)
        if reason:
            reader.mark_stale(path, f"Pre-processing of {fact.variant}", reason)
        else:
            current.append((path, fact))
    return current


def _collect_gates(reader: Reader, weights: _WeightsByFile, wanted: str) -> tuple[GateVerdict, ...]:
    """Verdicts about the files and fp32 files that lie here, reached on the images that are shown."""
    current = []
    for path, verdict in reader.read_facts("facts/gate/*.json", GateVerdict):
        reason = ""
        for ref in (verdict.artifact, verdict.fp32):
            if ref is not None and not reason:
                reason = _explain_other_file(ref, weights.artifacts.get((ref.variant, ref.kind, ref.recipe)))
        if not reason and verdict.weights_sha256 and verdict.parity != "failed":
            reason = weights.explain_other(verdict.artifact.variant, verdict.weights_sha256)
        images = verdict.images
        if not reason and images and wanted not in (images.sha256, images.part_of_sha256):
            reason = f"measured on other images: {images.name} ({images.sha256[:12]}…)."
        if reason:
            reader.mark_stale(path, f"Verdict about {verdict.artifact.label}", reason)
        else:
            current.append(verdict)
    return tuple(current)


def _strip(found: Sequence[tuple[Path, FactT]]) -> tuple[FactT, ...]:
    return tuple(fact for _, fact in found)


def _choose_images(context: ReportContext, facts: Sequence[AccuracyResult | ParityResult]) -> str:
    """SHA-256 of the one image set shown: the asked-for, or the commonest one; "" when there is none.

    Figures on different images cannot stand side by side.
    """
    if context.images:
        return context.images.sha256
    counts = Counter(fact.images.part_of_sha256 or fact.images.sha256 for fact in facts)
    return min(counts, key=lambda sha: (-counts[sha], sha), default="")


def _keep_images(
    reader: Reader, facts: Sequence[tuple[Path, SeenT]], wanted: str, name: Callable[[SeenT], str]
) -> list[tuple[Path, SeenT]]:
    """Facts on the wanted images or on the first of them; the others are stale."""
    kept = []
    for path, fact in facts:
        images = fact.images
        if wanted in (images.sha256, images.part_of_sha256):
            kept.append((path, fact))
        else:
            reader.mark_stale(
                path, name(fact), f"measured on other images: {images.name} ({images.sha256[:12]}…)."
            )
    return kept
