"""`nailtool data check` and `data split`: is a folder sound, and who is learnt from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.data.checking import CheckReport, Finding

SHOWN = 5  # findings of one kind that are printed; --all and --json give every one
MUCH_LESS = 0.1  # of all images missing from the training part: worth a word
PARTS_HELP = "TRAIN/VALIDATION/TEST in any unit, or TRAIN/TEST; default: the paper's."


@guarded
def check(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    *,
    every: Annotated[bool, typer.Option("--all", help="Print every finding, not five of a kind.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look for everything that is wrong with a data folder; exit code 1 when something is.

    Photos that cannot be read, shapes that cannot be, keypoints in wrong places, people and copies of
    photos on both sides of the split.

    Example: nailtool data check photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.checking import check_folder
    from nailtool.count_bar import CountBar

    with CountBar(terminal, "checked") as bar:
        report = check_folder(folder, progress=bar)
    show_report(terminal, folder, report, limit=None if every else SHOWN)
    if report.problems:
        raise typer.Exit(1)


def show_report(terminal: Terminal, folder: Path, report: CheckReport, *, limit: int | None = SHOWN) -> None:
    """Findings grouped by kind, each with its files and what to do; the same as JSON."""
    from nailcore.data.checking import KINDS

    for title, findings in (("Problems", report.problems), ("Worth knowing", report.notes)):
        if findings:
            terminal.table(
                title, ("kind", "file", "what", "what to do"), list_rows(findings, limit), right=()
            )
    parts = ", ".join(f"{count} {part}" for part, count in sorted(report.parts.items()))
    people = f", {report.people} people" if report.people else ""
    summary = f"{report.photos} photos, {report.nails} nails{people}{f' ({parts})' if parts else ''}"
    verdict = f"problems: {len(report.problems)}" if report.problems else "nothing wrong"
    terminal.show(f"{folder}: {summary}: {verdict}, notes: {len(report.notes)}.")
    terminal.emit(
        {
            "folder": str(folder),
            "ok": not report.problems,
            "photos": report.photos,
            "nails": report.nails,
            "people": report.people,
            "parts": report.parts,
            "findings": [
                {**finding.model_dump(), "level": finding.level, "remedy": KINDS[finding.kind].remedy}
                for finding in report.findings
            ],
        }
    )


def list_rows(findings: tuple[Finding, ...], limit: int | None) -> list[tuple[str, str, str, str]]:
    """Rows of the table; kind and remedy stand at the first finding of a kind alone."""
    from nailcore.data.checking import KINDS

    counts, rows, seen = Counter(f.kind for f in findings), [], Counter[str]()
    for finding in findings:
        kind = finding.kind
        seen[kind] += 1
        first = seen[kind] == 1
        if limit is None or seen[kind] <= limit:
            head = f"{kind} ({counts[kind]})" if first else ""
            rows.append((head, finding.file, finding.what, KINDS[kind].remedy if first else ""))
        elif seen[kind] == limit + 1:
            rows.append(("", f"and {counts[kind] - limit} more", "--all or --json shows them", ""))
    return rows


@guarded
def split(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    *,
    parts: Annotated[str, typer.Option("--parts", metavar="A/B/C", help=PARTS_HELP)] = "941/254/243",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another split.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a split that exists.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write split.json: who is learnt from, who is for choosing, who is for the final figures.

    A person's images stay together, and near-copies of one photo do.

    Example: nailtool data split photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.dividing import PARTS, divide_folder, find_learnt, parse_proportions
    from nailtool.count_bar import CountBar

    proportions = parse_proportions(parts)
    with CountBar(terminal, "compared") as bar:
        division = divide_folder(folder, proportions=proportions, seed=seed, force=force, progress=bar)
    made = division.split
    images, groups = Counter(made.parts().values()), Counter(made.part_of(group) for group in made.groups)
    total = sum(images.values())
    terminal.table(
        f"{folder / 'split.json'}",
        ("part", "images", "share", "wanted", "groups"),
        (
            (p, str(images[p]), f"{images[p] / total:.1%}", f"{share / sum(proportions):.1%}", str(groups[p]))
            for p, share in zip(PARTS, proportions, strict=True)
            if share
        ),
        right=("images", "share", "wanted", "groups"),
    )
    terminal.show(f"Written: {folder / 'split.json'}")
    learnt, wanted = images["train"] / total, proportions[0] / sum(proportions)
    if wanted - learnt > MUCH_LESS:
        terminal.show(
            f"{len(made.groups)} people or groups cannot be divided as wanted: only {images['train']} of "
            f"{total} images are learnt from. Without a validation part (--parts 4/1 --force) it may be "
            "more; `nailtool retrain --folds` measures every image in turn."
        )
    for a, b, bits in division.copies:
        terminal.show(f"Kept together as near-copies ({bits} of 64 bits differ): {a}, {b}")
    if division.nameless:
        terminal.show(
            f"{division.nameless} of {total} photographs name no person and count as one of their own each: "
            "where people occur twice, name them, or one of them lands on both sides (docs/data.md)."
        )
    known = find_learnt(made.parts())
    if known:
        terminal.show(
            f"{len(known)} held-out photographs were learnt from by the weights that ship: figures of these, "
            "and of what starts from them, will look better on them than on unseen ones."
        )
    terminal.emit(
        {
            "file": str(folder / "split.json"),
            "images": {part: images[part] for part in PARTS},
            "groups": {part: groups[part] for part in PARTS},
            "seed": seed,
            "nameless": division.nameless,
            "learnt_by_what_ships": list(known),
            "copies": [{"images": [a, b], "bits": bits} for a, b, bits in division.copies],
        }
    )
