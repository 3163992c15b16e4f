"""Encoders with the same budget, pretrained and from scratch: ``python -m benchmark.encoder_comparison``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.choices import Choice
from benchmark.choices_command import SET_HELP, compare, read_settings
from benchmark.program import run_program
from model_zoo import find_variant
from nailcore.errors import NailtoolError
from nailcore.nets.encoder import ENCODERS, FIRST_ENCODER, with_encoder
from nailcore.variant import Variant


def list_choices(base: Variant, inits: dict[str, Path], *, scratch: bool) -> list[Choice]:
    """Every encoder from its own pretrained weights where there are some, and from random ones."""
    known = sorted(ENCODERS, key=lambda name: name != FIRST_ENCODER)
    choices = [Choice(name, with_encoder(base, name), inits[name]) for name in known if name in inits]
    if scratch or not choices:
        choices += [Choice(f"{name}-random", with_encoder(base, name), None) for name in known]
    return choices


def read_inits(texts: list[str]) -> dict[str, Path]:
    """``ENCODER=FILE``; raises NailtoolError."""
    found = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name not in ENCODERS or not Path(file).is_file():
            raise NailtoolError(
                f"--init {text}: expected ENCODER=FILE with a file that exists, "
                f"ENCODER one of {', '.join(ENCODERS)}."
            )
        found[name] = Path(file)
    return found


def main(  # noqa: PLR0917 - options of a command
    data: Annotated[list[Path], typer.Option(help="Data folder with a held-out part; repeat it to mix.")],
    out: Annotated[Path, typer.Option(help="Checkpoints and results; an interrupted run resumes.")],
    init: Annotated[list[str] | None, typer.Option(metavar="ENCODER=FILE", help="Repeat it.")] = None,
    scratch: Annotated[bool, typer.Option(help="Also from random initialisation.")] = True,
    variant: Annotated[str, typer.Option(help="Whose depth, decoder and input size.")] = "nail55-480",
    steps: Annotated[int, typer.Option(min=1, help="The same budget for every encoder.")] = 500,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    crop: Annotated[int, typer.Option(help="Crop side in px.")] = 320,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int, typer.Option(min=0, help="0: as torch chooses.")] = 1,
    workers: Annotated[int, typer.Option(min=0)] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Of the timing.")] = 10,
    further: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)] = None,
) -> None:
    """Train every encoder with the same budget, measure accuracy and speed, write one table."""
    base = find_variant(variant)
    choices = list_choices(base, read_inits(init or []), scratch=scratch)
    settings = {"steps": steps, "batch": batch, "crop_px": crop, "threads": threads, "workers": workers}
    settings |= read_settings(further or [])
    compare(f"Encoders of {base.name}", choices, data, settings, seeds=seeds, rounds=rounds, out=out)


if __name__ == "__main__":
    run_program(main)
