"""`nailtool data import`: other people's labelled photographs as a data folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.data.importing import ImportRecord

SHOWN = 12  # lines of a list that is printed; the record holds all of them
FORMAT_HELP = "auto, masks (images/ and masks/), coco, labelme or yolo-seg."
SUBJECT_HELP = (
    "Whose hands: 'folder' (the photo's folder), or a regular expression on the file's name (one with a / "
    "sees the path); the first group counts."
)
LABEL_HELP = "What a label means: a finger (left thumb, ...), nail (unknown finger) or skip. Repeat it."
AUTO_HELP = "Take over fingers and directions that a machine guessed (auto_* of manifest.json), marked so."
KNOWN_HELP = (
    "Take over fingers and directions that ship with nailtool for a public set; default: yes, "
    "unless --auto-labels is given."
)
BAD_HELP = "Leave photos out that cannot be used, and list them, instead of stopping at the first."


@guarded
def import_data(
    source: Annotated[Path, typer.Argument(help="Folder or file to read.", metavar="SRC")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Data folder to write.")],
    kind: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = "auto",
    subject: Annotated[str, typer.Option("--subject", metavar="folder|REGEX", help=SUBJECT_HELP)] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=MEANING", help=LABEL_HELP)
    ] = None,
    auto_labels: Annotated[bool, typer.Option("--auto-labels", help=AUTO_HELP)] = False,
    known_labels: Annotated[
        bool | None, typer.Option("--known-labels/--no-known-labels", help=KNOWN_HELP, show_default=False)
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the data set; default: the source's.")] = "",
    licence: Annotated[str, typer.Option("--licence", help="Licence of the photos.")] = "",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=BAD_HELP)] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read labelled photographs of another format; writes images/, annotations.json and import.json.

    Photos are written upright and without metadata. A stopped import goes on where it was.

    Example: nailtool data import downloads/nails --out photos --subject folder
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.importing import ImportOrder, import_set
    from nailcore.data.importing.found import Wishes
    from nailcore.data.importing.names import parse_meanings
    from nailtool.count_bar import CountBar
    from nailtool.lock import hold_folder

    order = ImportOrder(
        source=source,
        out=out,
        format=kind,
        subject=subject,
        name=name,
        licence=licence,
        skip_bad=skip_bad,
        wishes=Wishes(
            meanings=parse_meanings(label or ()),
            auto_labels=auto_labels,
            known_labels=not auto_labels if known_labels is None else known_labels,
        ),
    )
    existed = out.exists()
    try:
        with (
            hold_folder(out, files=("annotations.json", "import.json")),
            CountBar(terminal, "imported") as bar,
        ):
            record, worked = import_set(order, progress=bar)
    finally:
        if not existed:
            drop_unused(out)
    show_import(terminal, out, record, worked=worked)


def drop_unused(out: Path) -> None:
    """Remove an output folder in which nothing but the lock was written: the order was refused."""
    import shutil

    from nailtool.lock import STATE_DIR

    if out.is_dir() and [path.name for path in out.iterdir()] == [STATE_DIR]:
        shutil.rmtree(out, ignore_errors=True)


def show_import(terminal: Terminal, out: Path, record: ImportRecord, *, worked: bool) -> None:
    """What was taken over and what was not; the same as JSON."""
    from nailcore.data.importing.run import count_known

    nails = sum(photo.nails for photo in record.photos)
    done = Counter(photo.done for photo in record.photos)
    how = ", ".join(f"{count} {what}" for what, count in done.most_common())
    before = "" if worked else "Nothing to do, imported before: "
    terminal.show(f"{before}{len(record.photos)} photos with {nails} nails: {out}")
    terminal.show(f"Photos: {how}.")
    if record.meanings:
        told = [f"{name} = {meaning}" for name, meaning in record.meanings[:SHOWN]]
        told += ["and more in import.json"] if len(record.meanings) > SHOWN else []
        terminal.show(f"Labels taken for: {', '.join(told)} (--label says otherwise).")
    if known := count_known(record):
        terminal.show(
            f"Fingers and directions of {known} photos: those that ship with nailtool for "
            f"{record.settings['known_labels']}; annotations.json says whose."
        )
    if empty := sum(photo.nails == 0 for photo in record.photos):
        terminal.show(f"{empty} of {len(record.photos)} photos have no nail: is that what their labels say?")
    people = Counter(photo.subject for photo in record.photos if photo.subject is not None)
    if people:
        told = [f"{person} {count}" for person, count in people.most_common(SHOWN)]
        told += [f"and {len(people) - SHOWN} more"] if len(people) > SHOWN else []
        terminal.show(f"People, with their photos: {', '.join(told)}.")
    notes = [(photo.file, note) for photo in record.photos for note in photo.notes]
    for title, rows in (("Left out", list(record.left_out)), ("Noted", notes)):
        if rows:
            more = [(f"and {len(rows) - SHOWN} more", "see import.json")] if len(rows) > SHOWN else []
            terminal.table(title, ("what", "why"), [*rows[:SHOWN], *more])
    document: dict[str, Any] = {
        "folder": str(out),
        "worked": worked,
        "photos": len(record.photos),
        "nails": nails,
        "done": dict(done),
        "left_out": [{"what": what, "why": why} for what, why in record.left_out],
        "meanings": dict(record.meanings),
        "people": dict(people),
        "notes": [{"file": file, "note": note} for file, note in notes],
        "settings": record.settings,
    }
    terminal.emit(document)
