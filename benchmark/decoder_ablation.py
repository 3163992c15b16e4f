"""Nail IoU against CPU-ms of the decoder's free choices: ``python -m benchmark.decoder_ablation``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.accuracy import evaluate_accuracy
from benchmark.latency import ProfileSettings
from model_zoo import find_variant
from nailcore.variant import Variant

# (fusion width, F1 convolution); everything else as the variant declares it.
CHOICES = ((32, "dense"), (64, "dense"), (128, "dense"), (64, "separable"), (128, "separable"))


def choose(variant: Variant, width: int, conv: str) -> Variant:
    """The variant with another decoder."""
    return variant.model_copy(update={"fusion_width": width, "fusion_conv": conv})


def train_choice(  # noqa: PLR0917 - named at the one call
    variant: Variant, data: Path, init: Path, steps: int, seed: int, out: Path
) -> dict[str, Any]:
    """Train one choice (resuming) and measure it on the held-out photos; the result is cached in ``out``."""
    from nailcore.data.folder import open_dataset
    from nailcore.storage import write_text
    from nailcore.train import TrainConfig, run_training

    result = out / "accuracy.json"
    if result.is_file():
        loaded: dict[str, Any] = json.loads(result.read_text("utf-8"))
        return loaded
    out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(data)
    config = TrainConfig(steps=steps, seed=seed, threads=1)
    weights = run_training(variant, dataset, config, out, init=init)
    facts = evaluate_accuracy(variant, weights, dataset, "held-out", out / "overlays")
    write_text(result, facts.model_dump_json(indent=1))
    loaded = json.loads(result.read_text("utf-8"))
    return loaded


def measure_cost(variants: list[Variant], scratch: Path, rounds: int) -> list[float]:
    """Median CPU-ms of each in onnxruntime, one thread, interleaved; random weights, speed does not care."""
    from benchmark.devices.cpu import profile
    from deploy import onnx
    from nailcore.artifact import artifact_path, write_manifest
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.weights import save_weights

    manifests = []
    for place, variant in enumerate(variants):
        folder = scratch / f"cost{place}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "random.safetensors"
        save_weights(build_cascade(variant), weights, {})
        path = artifact_path(folder, variant.name, "fp32", onnx.SUFFIX)
        manifests.append(write_manifest(path, onnx.convert(variant, {"name": "fp32"}, weights, path)))
    rows = profile(manifests, ProfileSettings(rounds=rounds), lambda done, total: None)
    return [row.median_cpu_ms for row in rows]


def main(  # noqa: PLR0917 - options of a command
    data: Annotated[Path, typer.Option(help="Photographs with masks, with a held-out part.")],
    init: Annotated[Path, typer.Option(help="Encoder initialisation (.npz).")],
    out: Annotated[Path, typer.Option(help="Checkpoints and results; an interrupted run resumes.")],
    variant: Annotated[str, typer.Option(help="Whose encoder and input size.")] = "nail55-480",
    steps: Annotated[int, typer.Option(min=1, help="The same budget for every choice.")] = 500,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Train every choice with the same budget, measure accuracy and speed, print one table."""
    from rich.console import Console
    from rich.table import Table

    from nailcore.storage import write_text

    base = find_variant(variant)
    table = Table("fusion width", "F1 convolution", "seed", "nail IoU", "95 %", "CPU-ms", title=base.name)
    rows: list[dict[str, Any]] = []
    found = [
        (width, conv, seed, train_choice(choose(base, width, conv), data, init, steps, seed, folder))
        for seed in range(seeds)
        for width, conv in CHOICES
        for folder in [out / f"{width}-{conv}-{seed}"]
    ]
    costs = measure_cost([choose(base, *choice) for choice in CHOICES], out, rounds)
    cost_of = dict(zip(CHOICES, costs, strict=True))
    for width, conv, seed, accuracy in found:
        iou, cpu_ms = accuracy["nail_iou"], cost_of[width, conv]
        rows.append(
            {"fusion_width": width, "fusion_conv": conv, "seed": seed, "cpu_ms": cpu_ms, "nail_iou": iou}
        )
        interval = f"{100 * iou['low']:.1f}–{100 * iou['high']:.1f}"
        table.add_row(str(width), conv, str(seed), f"{100 * iou['value']:.1f}", interval, f"{cpu_ms:.1f}")
    Console().print(table)
    write_text(
        out / "decoder.json", json.dumps({"steps": steps, "variant": base.name, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    typer.run(main)
