"""What the TF.js graph passes gain: CPU time before and after, all models in one interleaved run.

Run it with ``python -m benchmark.fold_gain --help``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmark.devices import chromium
from benchmark.latency import ProfileSettings
from benchmark.program import run_program
from deploy import tfjs
from deploy.tfjs_write import Passes
from model_zoo import find_variant, load_variants
from nailcore.artifact import MANIFEST_SUFFIX, Artifact, artifact_path, write_manifest
from nailcore.errors import ArtifactError
from nailcore.facts import Measurement
from nailcore.runtime import Logits
from nailcore.storage import write_text
from nailcore.variant import Variant
from quantize import find_recipe

STEPS: tuple[Passes, ...] = get_args(Passes)
_TITLES = {"none": "official converter", "fold": "dilations folded", "fuse": "folded, then fused (shipped)"}


def build_steps(variant: Variant, models: Path, out: Path) -> list[Path]:
    """Convert one variant's ONNX file three times, once per set of passes; returns the manifests.

    Raises:
        ArtifactError: ``models`` holds no ONNX file of this variant.
    """
    parent = artifact_path(models, variant.name, "fp32", ".onnx")
    if not parent.is_file():
        raise ArtifactError(
            f"{parent}: no such file.",
            hint=f"Run `nailtool build-variants --variants {variant.name} --targets onnx --out {models}`.",
        )
    recipe = find_recipe("fp32").model_dump(mode="json")
    manifests = []
    for passes in STEPS:
        path = artifact_path(out, variant.name, f"fp32-{passes}", tfjs.SUFFIX)
        named = recipe | {"name": f"fp32-{passes}"}
        manifests.append(write_manifest(path, tfjs.convert(variant, named, parent, path, passes=passes)))
    return manifests


def compare_outputs(manifests: list[Path]) -> dict[str, float]:
    """Largest difference of any logit between each model and the first, on one fixed image, in Chromium."""
    found: dict[str, Logits] = {}
    for manifest in manifests:
        artifact = Artifact.model_validate_json(manifest.read_bytes())
        shape = artifact.made_by.config["variant"]
        size = (1, shape["height_px"], shape["width_px"], 3)
        image = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        runner = tfjs.open_runner(artifact, manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX)))
        try:
            found[artifact.made_by.config["passes"]] = runner.run(image)
        finally:
            runner.close()
    first = next(iter(found.values()))
    return {
        passes: max(float(np.abs(logits[name] - first[name]).max()) for name in first)
        for passes, logits in found.items()
    }


def tabulate(measured: dict[str, dict[str, Measurement]], differences: dict[str, dict[str, float]]) -> Table:
    """One row per variant: CPU-ms per step, gain of the whole, largest difference."""
    table = Table(title="TF.js wasm, median CPU-ms per inference, one interleaved run")
    table.add_column("variant")
    for step in STEPS:
        table.add_column(_TITLES[step], justify="right")
    table.add_column("before / shipped", justify="right")
    table.add_column("max abs difference", justify="right")
    for name, steps in measured.items():
        times = [steps[step].median_cpu_ms for step in STEPS]
        table.add_row(
            name,
            *(f"{value:.1f}" for value in times),
            f"{times[0] / times[-1]:.2f}×",
            f"{max(differences[name].values()):.1e}",
        )
    return table


def main(
    out: Annotated[Path, typer.Option(help="Folder for the models and fold_gain.json.")],
    models: Annotated[Path, typer.Option(help="Where build-variants wrote the ONNX files.")] = Path(
        "artifacts"
    ),
    variants: Annotated[str, typer.Option(help="Comma-separated names; default: all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all models.")] = 7,
) -> None:
    """Build every variant without passes, folded, and folded + fused; time them side by side in Chromium."""
    console = Console()
    names = [name for name in variants.split(",") if name] or list(load_variants())
    settings = ProfileSettings(rounds=rounds, warmup=2)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("converting", total=len(names))
        manifests = []
        differences = {}
        for name in names:
            built = build_steps(find_variant(name), models, out)
            differences[name] = compare_outputs(built)
            manifests += built
            progress.advance(task)
        task = progress.add_task("measuring", total=len(manifests) * rounds)
        found = chromium.profile(manifests, settings, lambda done, _: progress.update(task, completed=done))
    measured: dict[str, dict[str, Measurement]] = {name: {} for name in names}
    for fact in found:
        measured[fact.artifact.variant][fact.artifact.recipe.removeprefix("fp32-")] = fact
    console.print(tabulate(measured, differences))
    report: dict[str, Any] = {
        name: {
            "max_abs_difference": differences[name],
            "steps": {step: fact.model_dump(mode="json") for step, fact in steps.items()},
        }
        for name, steps in measured.items()
    }
    write_text(out / "fold_gain.json", json.dumps(report, indent=1) + "\n")
    console.print(f"Raw samples: {out / 'fold_gain.json'}")


if __name__ == "__main__":
    run_program(main)
