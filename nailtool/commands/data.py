"""`nailtool data`: look at a data folder, or write the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands import data_autolabel, data_check, data_fetch, data_import, data_name
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

app = typer.Typer(
    help="Import, check, split and show labelled photographs; render hands.", no_args_is_help=True
)
app.command("import")(data_import.import_data)
app.command("check")(data_check.check)
app.command("split")(data_check.split)
app.command("fetch")(data_fetch.fetch)
app.command("autolabel")(data_autolabel.autolabel)
app.command("name")(data_name.name)


@app.command("show")
@guarded
def show(
    folder: Annotated[Path, typer.Argument(help="Data folder: images/ with annotations.json or masks/.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("contact-sheet.png"),
    part: Annotated[str, typer.Option("--part", help="all, train, validation, test or held-out.")] = "all",
    columns: Annotated[int, typer.Option("--columns", min=1, max=50, help="Pictures per row.")] = 6,
    cell: Annotated[int, typer.Option("--cell", min=64, max=2048, help="Long side of a picture, px.")] = 320,
    numbers: Annotated[bool, typer.Option("--numbers", help="Number the nails, for `data name`.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a contact sheet: every image with the outlines, fingers and directions of its nails.

    Example: nailtool data show photos --out sheet.png --part held-out
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.coco import ANNOTATIONS
    from nailcore.data.folder import PARTS, open_dataset
    from nailcore.errors import DataError, UnknownNameError
    from nailtool.contact_sheet import write_contact_sheet

    if part not in PARTS:
        raise UnknownNameError("part", part, PARTS)
    dataset = open_dataset(folder)
    if numbers and not (folder / ANNOTATIONS).is_file():
        raise DataError(
            f"{folder / ANNOTATIONS}: no such file, and numbers are for `data name`, which writes into it.",
            hint="Bring the folder into our format first: `nailtool data import`.",
        )
    samples = dataset.part(PARTS[part])
    if not samples:
        raise DataError(
            f"{folder}: its {part} part holds no images.",
            hint="`nailtool data split --force` writes another.",
        )
    write_contact_sheet(samples, out, columns=columns, cell_px=cell, numbers=numbers)
    kind = "synthetic images" if dataset.card.synthetic else "images"
    terminal.show(f"{len(samples)} {kind} of {dataset.card.name} ({part}): {out}")
    terminal.emit(
        {
            "file": str(out),
            "dataset": dataset.card.name,
            "synthetic": dataset.card.synthetic,
            "part": part,
            "images": [sample.name for sample in samples],
        }
    )


RENDERER_HELP = "raster (about 1 CPU-second an image) or photoreal (about 13, with Blender; docs/data.md)."
BLENDER_HELP = "The Python that has bpy (docs/data.md); default: $NAILTOOL_BLENDER_PYTHON, or this one."


@app.command("synth")
@guarded
def synth(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    count: Annotated[
        int, typer.Option("--count", min=0, help="Images of a training set; 0: the embedded set.")
    ] = 0,
    subjects: Annotated[int, typer.Option("--subjects", min=2, help="People among them.")] = 300,
    seed: Annotated[int, typer.Option("--seed", min=0, max=99, help="Another seed, other people.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Worker processes at once.")] = 1,
    renderer: Annotated[str, typer.Option("--renderer", help=RENDERER_HELP)] = "raster",
    blender_python: Annotated[
        Path | None, typer.Option("--blender-python", metavar="PATH", help=BLENDER_HELP)
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Labelled hands: all of the embedded set, or with --count newly rendered ones, split by person.

    A stopped rendering goes on where it was when the command is given again. Both renderers show the
    same scenes with the same labels.

    Example: nailtool data synth --out hands --count 2000 --jobs 2

    Near photographs: nailtool data synth --out looks --count 300 --renderer photoreal
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.synth import RenderOrder, make_embedded_set, render_set
    from nailcore.data.synth.rendered_set import RENDERERS
    from nailcore.errors import DataError, UnknownNameError
    from nailtool.count_bar import CountBar
    from nailtool.lock import hold_folder

    chosen = next((name for name in RENDERERS if name == renderer), None)
    if chosen is None:
        raise UnknownNameError("renderer", renderer, RENDERERS)
    if count:
        order = RenderOrder(count=count, subjects=subjects, seed=seed, renderer=chosen)
        with hold_folder(out), CountBar(terminal, "rendered") as bar:
            render_set(out, order, jobs=jobs, progress=bar, blender_python=blender_python)
    elif chosen != "raster":
        raise DataError(
            f"--renderer {chosen} without --count: how many images?",
            hint="The embedded set needs no renderer: it ships with the package.",
        )
    else:
        if out.exists():
            raise DataError(f"{out}: exists already.", hint="Name a folder that does not exist yet.")
        with CountBar(terminal, "unpacked") as bar:
            make_embedded_set(out, test_images=None, progress=bar)
    terminal.show(f"Synthetic hands, rendered: {out}")
    terminal.emit({"folder": str(out), "synthetic": True})
