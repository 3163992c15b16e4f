"""What the decoder's width costs in CPU-ms; run it as ``python -m benchmark.decoder_cost``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmark.devices.cpu import profile
from benchmark.latency import ProfileSettings
from deploy import onnx
from model_zoo import find_variant
from nailcore.artifact import artifact_path, write_manifest
from nailcore.facts import Measurement

WIDTHS = (32, 64, 96, 128)


def measure_widths(name: str, widths: tuple[int, ...], settings: ProfileSettings) -> dict[int, Measurement]:
    """Latency of one variant's graph at several fusion widths; weights are random, speed does not care."""
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.weights import save_weights

    with tempfile.TemporaryDirectory() as scratch:
        manifests = []
        for width in widths:
            variant = find_variant(name).model_copy(update={"fusion_width": width})
            folder = Path(scratch) / str(width)
            weights = folder / "random.safetensors"
            save_weights(build_cascade(variant), weights, {})
            path = artifact_path(folder, variant.name, "fp32", onnx.SUFFIX)
            manifests.append(write_manifest(path, onnx.convert(variant, {"name": "fp32"}, weights, path)))
        rows = profile(manifests, settings, lambda done, total: None)
    return dict(zip(widths, rows, strict=True))


def main(
    variant: Annotated[str, typer.Option(help="Whose encoder and input size.")] = "nail55-480",
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    out: Annotated[Path | None, typer.Option(help="Also write the raw measurements as JSON.")] = None,
) -> None:
    """Time fusion widths 32 to 128 in onnxruntime, one thread, in one interleaved run."""
    from rich.console import Console
    from rich.table import Table

    rows = measure_widths(variant, WIDTHS, ProfileSettings(rounds=rounds))
    table = Table(
        "fusion width", "CPU-ms", "wall-ms", "p90 wall-ms", "size MB", title=f"{variant}, ONNX, 1 thread"
    )
    for width, row in rows.items():
        figures = (row.median_cpu_ms, row.median_wall_ms, row.p90_wall_ms, row.artifact.size_bytes / 1e6)
        table.add_row(str(width), *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
    if out is not None:
        from nailcore.storage import write_text

        write_text(out, json.dumps({w: r.model_dump(mode="json") for w, r in rows.items()}, indent=1))


if __name__ == "__main__":
    typer.run(main)
