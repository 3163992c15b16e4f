"""`nailtool adopt`: trained weights become a variant that every other command knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

WEIGHTS_HELP = "A .safetensors file that `train` or `retrain` wrote, its facts and card beside it."
NAME_HELP = "Of the new variant: a word, a hyphen, the input size in px, such as mine-480."
REPLACE_HELP = "Also under a name that exists, shipped ones too: what lay there is then gone from the zoo."


@guarded
def adopt(
    *,
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help=WEIGHTS_HELP)],
    name: Annotated[str, typer.Option("--name", help=NAME_HELP)],
    replace: Annotated[bool, typer.Option("--replace", help=REPLACE_HELP)] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a variant of trained weights: build-variants, report and the others then take it by its name.

    Copies weights, facts and card into model_zoo/weights and declares the variant in model_zoo/variants.

    Example: nailtool adopt runs/mine/nail55-480.safetensors --name mine-480
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.shipping import adopt_weights

    variant = adopt_weights(weights, name, replace=replace)
    terminal.show(
        f"{variant.name}: {variant.encoder_layers} layers, {variant.width_px} × {variant.height_px} px. "
        f"Next: nailtool report --variants {variant.name} --data FOLDER"
    )
    terminal.emit({"variant": variant.model_dump(mode="json")})
