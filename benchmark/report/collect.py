"""Read manifests and facts below an output folder, and keep only what speaks of the files there now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from benchmark.report.bundle import DamagedFile, ReportContext, ReportInput, StaleFact
from benchmark.report.lineage import find_weights_sha256, index_by_file
from benchmark.report.overlays import load_overlays
from nailcore.artifact import MANIFEST_SUFFIX, Artifact, BrokenParent, read_manifest
from nailcore.errors import ArtifactError
from nailcore.facts import (
    AccuracyResult,
    ArtifactRef,
    Fact,
    ImageSet,
    Measurement,
    ParityResult,
    Skipped,
    read_fact,
)

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

    A fact about another file than the current manifest describes is set aside in ``stale``; a damaged
    file is named in ``damaged``. Neither is ever used as a result.

    Raises:
        ArtifactError: the folder does not exist.
    """
    if not out_dir.is_dir():
        raise ArtifactError(f"{out_dir}: no such folder.", hint="Run `nailtool build-variants` first.")
    reader = Reader(out_dir)
    artifacts = _collect_artifacts(reader)
    accuracy = _collect_accuracy(reader, artifacts, context.images)
    overlays, left_out = load_overlays(accuracy, artifacts.values(), out_dir / "facts/accuracy", reader)
    return ReportInput(
        context=context,
        artifacts=tuple(artifacts.values()),
        parity=_collect_bound(reader, "facts/parity/*.json", ParityResult, artifacts, "parity"),
        latency=_collect_bound(reader, "facts/latency/*/*.json", Measurement, artifacts, "latency"),
        accuracy=accuracy,
        overlays=overlays,
        overlays_left_out=left_out,
        skipped=tuple(fact for _, fact in reader.read_facts("facts/skipped/*.json", Skipped)),
        stale=tuple(reader.stale),
        damaged=tuple(reader.damaged),
    )


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


BoundT = TypeVar("BoundT", ParityResult, Measurement)


def _collect_bound(
    reader: Reader, pattern: str, kind: type[BoundT], artifacts: dict[Label, Artifact], noun: str
) -> tuple[BoundT, ...]:
    kept: dict[tuple[str, ...], BoundT] = {}
    for path, fact in reader.read_facts(pattern, kind):
        ref = fact.artifact
        device = fact.device if isinstance(fact, Measurement) else ""
        what = f"{noun.capitalize()} of {ref.label}" + (f" on {device}" if device else "")
        key = (ref.variant, ref.kind, ref.recipe, device)
        reason = _explain_other_file(ref, artifacts.get(key[:3]))
        if reason:
            reader.mark_stale(path, what, reason)
        elif key in kept:
            reader.mark_damaged(path, f"a second fact for the {noun} of {ref.label}; the first was used")
        else:
            kept[key] = fact
    return tuple(kept.values())


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


def _collect_accuracy(
    reader: Reader, artifacts: dict[Label, Artifact], images: ImageSet | None
) -> tuple[AccuracyResult, ...]:
    by_file = index_by_file(artifacts.values())
    weights: dict[str, set[str]] = {}
    for artifact in artifacts.values():
        found = find_weights_sha256(artifact, by_file)
        if isinstance(found, str):
            weights.setdefault(artifact.variant, set()).add(found)
    current: list[tuple[Path, AccuracyResult]] = []
    for path, fact in reader.read_facts("facts/accuracy/*.json", AccuracyResult):
        known = weights.get(fact.variant, set())
        if fact.weights_sha256 in known:
            current.append((path, fact))
            continue
        now = " and ".join(f"{sha[:12]}…" for sha in sorted(known))
        reason = f"SHA-256 {fact.weights_sha256[:12]}…, but the files here descend from {now}"
        if not known:
            reason = "no file of this variant here descends from known weights."
        reader.mark_stale(path, f"Accuracy of {fact.variant}", f"measured on other weights: {reason}")
    return _keep_one_image_set(reader, current, images)


def _keep_one_image_set(
    reader: Reader, facts: list[tuple[Path, AccuracyResult]], images: ImageSet | None
) -> tuple[AccuracyResult, ...]:
    """Accuracy on different images cannot stand in one table: keep the asked-for, or the commonest set."""
    if not facts:
        return ()
    counts = Counter(fact.images.sha256 for _, fact in facts)
    wanted = images.sha256 if images else min(counts, key=lambda sha: (-counts[sha], sha))
    kept = []
    for path, fact in facts:
        if fact.images.sha256 == wanted:
            kept.append(fact)
        else:
            reader.mark_stale(
                path,
                f"Accuracy of {fact.variant}",
                f"measured on other images: {fact.images.name} ({fact.images.sha256[:12]}…).",
            )
    return tuple(kept)
