"""A parity job whose answer is written in a file beside the weights: nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark.accuracy_drop import describe_drop
from nailcore.artifact import read_manifest
from nailcore.facts import ArtifactRef, ImageDrop, ImageSet, Limits, Machine, ParityResult, write_fact

ORDERS = "parity.json"  # recipe -> {"status": ..., "lost": [per cent of each image's nail pixels]}


def write_parity(
    *, manifest: Path, weights: Path, engine: str, fact: Path, heatmap_dir: Path, **_: object
) -> None:
    """Write what the orders say of the artefact's recipe; a sound file by default."""
    artifact = read_manifest(manifest)
    orders = weights.parent / ORDERS
    order = json.loads(orders.read_text()).get(artifact.recipe, {}) if orders.exists() else {}
    status, lost = order.get("status", "passed"), order.get("lost", [0.1] * 10)
    drops = [
        ImageDrop(
            name=f"photo-{n}",
            found=(900 - round(10 * p), 100, 100 + round(10 * p), 9000),
            reference=(900, 100, 100, 9000),
        )
        for n, p in enumerate(lost)
    ]
    heatmap_dir.mkdir(parents=True, exist_ok=True)
    result = ParityResult(
        artifact=ArtifactRef.of(artifact),
        weights_sha256="0" * 64,
        status=status,
        runtime="none",
        versions={},
        machine=Machine(cpu="", cores=1, memory_bytes=1, system="", python=""),
        images=ImageSet(name="photographs", sha256="a", count=len(lost), synthetic=False),
        limits=Limits(max_abs=None, flipped_permille=1, reason=""),
        engine=engine,
        accuracy=None if status == "not executed" else describe_drop(drops),
        failures=[f"{artifact.label}: fgbg is off."] if status == "failed" else [],
        note="no browser" if status == "not executed" else "",
    )
    write_fact(fact, result)
