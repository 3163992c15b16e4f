"""`nailtool run-coreml`: execute a CoreML package on one photograph, on any machine."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from deploy.mil.blobs import Array

ENGINE_NOTE = "Computed by the MIL reference: what the file means, not what Apple's hardware makes of it."


class PrecisionChoice(StrEnum):
    """Values of ``--precision``."""

    declared = "declared"
    fp32 = "fp32"


class LayoutChoice(StrEnum):
    """Values of ``--layout``."""

    nchw = "nchw"
    nhwc = "nhwc"


class FitChoice(StrEnum):
    """Values of ``--fit``."""

    pad = "pad"
    stretch = "stretch"


@guarded
def run_coreml(
    *,
    model: Annotated[Path, typer.Argument(help="An .mlpackage folder, of this project or of anyone.")],
    image: Annotated[Path, typer.Argument(help="A photograph; its EXIF orientation is applied.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write outputs (.npz) and overlays here.")] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="declared: float16 where the file says so; fp32: nothing rounded.")
    ] = PrecisionChoice.declared,
    fit: Annotated[FitChoice, typer.Option(help="How the photograph gets the input's size.")] = FitChoice.pad,
    size: Annotated[
        str, typer.Option(metavar="HEIGHTxWIDTH", help="Input size of a model with flexible sizes.")
    ] = "",
    scale: Annotated[
        str, typer.Option(help="Tensor inputs: pixel × SCALE + BIAS; one number, or three for R,G,B.")
    ] = "0.00392156862745098",
    bias: Annotated[str, typer.Option(help="See --scale.")] = "0",
    layout: Annotated[
        LayoutChoice | None, typer.Option(help="Tensor inputs and outputs; default: from the input's shape.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Execute a CoreML package on one photograph, here, without a Mac.

    Image inputs get their pixels as they are; tensor inputs get them divided by 255 unless --scale and
    --bias say otherwise. ImageNet's normalisation is --scale 0.0171247,0.0175070,0.0174292
    --bias=-2.1179,-2.0357,-1.8044.

    Example: nailtool run-coreml nail55-288.fp16.mlpackage photo.jpg --out results
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    feeding_options = (_read_numbers(scale, "--scale"), _read_numbers(bias, "--bias"), _read_size(size))
    from deploy.mil import load_package
    from deploy.mil.photo import Feeding, feed_photo, save_results
    from nailcore.data.folder import read_image

    loaded = load_package(model)
    photo = read_image(image)
    feeding = Feeding(
        scale=feeding_options[0],
        bias=feeding_options[1],
        size=feeding_options[2],
        layout=layout.value if layout else None,
        keep_aspect=fit is FitChoice.pad,
    )
    fed = feed_photo(loaded, photo, feeding)
    for note in (*fed.notes, ENGINE_NOTE):
        terminal.note(note)
    outputs = loaded.run(fed.inputs, precision=precision.value)
    rows = [_describe(name, value) for name, value in outputs.items()]
    terminal.table(
        f"Outputs of {model.name} ({precision.value} precision)",
        ("output", "shape", "type", "lowest", "highest", "not finite"),
        (
            (r["name"], _shape(r), r["dtype"], _figure(r["min"]), _figure(r["max"]), str(r["not_finite"]))
            for r in rows
        ),
    )
    files = save_results(out, image.stem, fed, outputs, loaded.outputs) if out else []
    for file in files:
        terminal.show(f"wrote {file}")
    if out is None:
        terminal.note("Nothing was written; --out DIR writes the arrays and, for maps, an overlay.")
    terminal.emit(
        {
            "model": model.name,
            "engine": "MIL reference",
            "note": ENGINE_NOTE,
            "precision": precision.value,
            "operations": len(loaded.layers),
            "feeding": list(fed.notes),
            "outputs": rows,
            "classes": list(loaded.classes),
            "files": [str(f) for f in files],
        }
    )


def _read_numbers(text: str, option: str) -> tuple[float, ...]:
    from nailcore.errors import NailtoolError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise NailtoolError(f"{option} {text!r}: expected one number, or three separated by commas.")
    return values


def _read_size(text: str) -> tuple[int, int] | None:
    from nailcore.errors import NailtoolError

    if not text:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise NailtoolError(f"--size {text!r}: expected HEIGHTxWIDTH, e.g. 480x640.")
    return int(height), int(width)


def _describe(name: str, value: Array) -> dict[str, Any]:
    import numpy as np

    row: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
    row |= {"min": None, "max": None, "not_finite": 0}
    if value.dtype.kind in "fiu" and value.size:
        finite = value[np.isfinite(value)]
        row["not_finite"] = int(value.size - finite.size)
        if finite.size:
            row["min"], row["max"] = float(finite.min()), float(finite.max())
    elif value.dtype.kind in "US":
        row["value"] = str(value)
    return row


def _shape(row: dict[str, Any]) -> str:
    return str(row["value"]) if "value" in row else "×".join(map(str, row["shape"])) or "scalar"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
