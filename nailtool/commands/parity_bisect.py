"""What `parity-check --bisect` says: the layer, its torch module, both sides' attributes, the cause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.divergence_facts import Divergence
    from nailtool.bisection import Bisection
    from nailtool.pipeline import Order


def run_bisection(
    terminal: Terminal, order: Order, given: Path, data: Path | None, engines: str | None
) -> None:
    """Bisect one artefact; ends the command with exit code 1 when a layer diverges."""
    from nailcore.errors import NailtoolError
    from nailtool.bisection import bisect_artifact

    if engines is not None and (engines == "all" or "," in engines):
        raise NailtoolError(
            f"--bisect executes a file with one engine, not with '{engines}'.",
            hint="Name one with --engines, or none for the usual one.",
        )
    found = bisect_artifact(order, given, data, engines or "")
    _show(terminal, found)
    if found.result.found is not None:
        raise typer.Exit(1)


def _show(terminal: Terminal, found: Bisection) -> None:
    artifact, result = found.artifact, found.result
    if found.changed:
        terminal.complain(
            f"{artifact.label}:",
            f"the bytes of {found.path.name} are not those its manifest describes (SHA-256 "
            f"{found.found_sha256[:12]}…, manifest says {artifact.sha256[:12]}…); taken as they are.",
        )
    if result.found is None:
        terminal.show(
            f"{artifact.label} in {result.engine}: every layer computes what the network computes from the "
            "same inputs, within its tolerance."
        )
    else:
        _show_divergence(terminal, artifact.label, result.found)
    terminal.emit(
        {
            "artifact": artifact.label,
            "file": artifact.file,
            "sha256": artifact.sha256,
            "found_sha256": found.found_sha256,
            "changed": found.changed,
            "engine": result.engine,
            "images": result.images.model_dump(mode="json"),
            "divergence": result.found.model_dump(mode="json") if result.found else None,
            "fact": str(found.fact) if found.fact else None,
        }
    )


def _show_divergence(terminal: Terminal, label: str, found: Divergence) -> None:
    from benchmark.divergence_words import describe_error, pair_attributes

    terminal.show(f"{label} in {found.engine}: first divergence at layer '{found.layer}' ({found.op})")
    terminal.show(f"  the network's module: {found.module} ({found.torch_op})")
    sure = "confirmed by computing it again" if found.confirmed else "not confirmed"
    terminal.show(f"  cause: {found.cause}, {sure}: {found.detail}")
    terminal.show(f"  error of this layer alone: {describe_error(found)}")
    terminal.show(f"  where: {found.where}; image {found.image}")
    terminal.show(f"  {found.layers_checked} of {found.layers} layers were looked at, by {found.runtime}.")
    pairs = pair_attributes(found.file_attributes, found.torch_attributes)
    if pairs:
        terminal.table(
            "Attributes, under torch's names",
            ("attribute", "in the file", "in the network", ""),
            [
                (p.name, p.file or "not stated", p.network or "not stated", "≠" if p.differs else "")
                for p in pairs
            ],
        )
