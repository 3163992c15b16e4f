"""Nail IoU against CPU-ms of the decoder's free choices: ``python -m benchmark.decoder_ablation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.choices import Choice
from benchmark.choices_command import SET_HELP, compare, read_settings
from benchmark.program import run_program
from model_zoo import find_variant
from nailcore.variant import Variant

# (fusion width, F1 convolution, stride of the map the heads see); everything else as the variant has it.
Decoder = tuple[int, str, int]
CHOICES: tuple[Decoder, ...] = (
    (128, "dense", 4),
    (64, "dense", 4),
    (32, "dense", 4),
    (128, "separable", 4),
    (64, "separable", 4),
    (128, "dense", 8),
)


def list_decoders(variant: Variant) -> list[Decoder]:
    """What ships first: the others are compared with it."""
    ships = (variant.fusion_width, variant.fusion_conv, variant.heads_stride)
    return [ships, *(decoder for decoder in CHOICES if decoder != ships)]


def choose(variant: Variant, decoder: Decoder) -> Variant:
    """The variant with another decoder."""
    width, conv, stride = decoder
    return variant.model_copy(update={"fusion_width": width, "fusion_conv": conv, "heads_stride": stride})


def name_decoder(decoder: Decoder) -> str:
    """The row and the folder: ``128-dense``, ``128-dense-heads8``."""
    width, conv, stride = decoder
    return f"{width}-{conv}" + ("" if stride == 4 else f"-heads{stride}")


def main(  # noqa: PLR0917 - options of a command
    data: Annotated[list[Path], typer.Option(help="Data folder with a held-out part; repeat it to mix.")],
    out: Annotated[Path, typer.Option(help="Checkpoints and results; an interrupted run resumes.")],
    init: Annotated[Path | None, typer.Option(help="Pretrained encoder (.npz); without it, random.")] = None,
    variant: Annotated[str, typer.Option(help="Whose encoder and input size.")] = "nail55-480",
    steps: Annotated[int, typer.Option(min=1, help="The same budget for every choice.")] = 500,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    crop: Annotated[int, typer.Option(help="Crop side in px.")] = 320,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int, typer.Option(min=0, help="0: as torch chooses.")] = 1,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Of the timing.")] = 10,
    further: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)] = None,
) -> None:
    """Train every choice with the same budget, measure accuracy and speed, write one table."""
    base = find_variant(variant)
    decoders = list_decoders(base)
    choices = [Choice(name_decoder(d), choose(base, d), init) for d in decoders]
    settings = {"steps": steps, "batch": batch, "crop_px": crop, "threads": threads, "workers": workers}
    settings |= read_settings(further or [])
    compare(f"Decoders of {base.name}", choices, data, settings, seeds=seeds, rounds=rounds, out=out)


if __name__ == "__main__":
    run_program(main)
