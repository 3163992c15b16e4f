"""`nailtool data fetch`: public sets by name, verified before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.data_import import drop_unused, show_import
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal, format_bytes

if TYPE_CHECKING:
    from nailcore.data.fetching import PublicSet

FETCHED = "fetched.json"
URL_HELP = "Download this file; for a set that is not in the registry, or has no hash there."
SHA_HELP = "SHA-256 of the file at --url, from somebody you trust; nothing is used unverified."
LICENCE_HELP = "Licence of what is at --url."
REGISTRY_HELP = "Another folder of TOML files that describe sets."
CACHE_HELP = "Where downloads are kept; default: the user's cache folder."


@guarded
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a public set.", metavar="[NAME]")] = "",
    *,
    every: Annotated[bool, typer.Option("--list", help="Show the sets of the registry.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Data folder to write; default: NAME.")] = None,
    url: Annotated[str, typer.Option("--url", help=URL_HELP)] = "",
    sha256: Annotated[str, typer.Option("--sha256", metavar="HEX", help=SHA_HELP)] = "",
    licence: Annotated[str, typer.Option("--licence", help=LICENCE_HELP)] = "",
    kind: Annotated[str, typer.Option("--format", help="As for `data import`.")] = "",
    registry: Annotated[Path | None, typer.Option("--registry", metavar="DIR", help=REGISTRY_HELP)] = None,
    cache: Annotated[Path | None, typer.Option("--cache", metavar="DIR", help=CACHE_HELP)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licence without being asked.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download a public set, verify its SHA-256, and import it.

    Size, hash and licence are shown first, and nothing is downloaded before they are accepted.

    Example: nailtool data fetch --list

    Not in the registry: nailtool data fetch mine --url https://… --sha256 … --licence CC-BY-4.0
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.data.fetching import REGISTRY_DIR, read_registry
    from nailcore.errors import NailtoolError

    known = read_registry([REGISTRY_DIR, *([registry] if registry else [])])
    if every:
        show_sets(terminal, known)
        return
    if not name:
        raise NailtoolError("Which set?", hint="`nailtool data fetch --list` shows them.")
    entry = choose_set(name, known, url=url, sha256=sha256, licence=licence, kind=kind)
    show_terms(terminal, entry)
    if not yes:
        ask(terminal, entry)
    fetch_set(terminal, entry, out or Path(name), cache)


def choose_set(
    name: str, known: dict[str, PublicSet], *, url: str, sha256: str, licence: str, kind: str
) -> PublicSet:
    """The set to download: of the registry, or as the options describe it.

    Raises:
        NailtoolError: neither gives a file with its hash, or no licence.
    """
    from pydantic import ValidationError

    from nailcore.data.fetching import PublicFile, PublicSet
    from nailcore.errors import NailtoolError, UnknownNameError

    entry = known.get(name)
    if not url and not sha256:
        if entry is None:
            raise UnknownNameError("public set", name, known)
        if not entry.files:
            raise NailtoolError(
                f"{name}: nobody has verified a file of it yet, so the registry holds no SHA-256.",
                hint=f"Find the archive at {entry.homepage} and give --url and --sha256.",
            )
        return entry if not kind else entry.model_copy(update={"format": kind})
    if not url or not sha256:
        raise NailtoolError(
            "--url and --sha256 go together: nothing is used unverified.",
            hint="Without a hash from the publisher, download the file yourself and use `data import`.",
        )
    terms = licence or (entry.licence if entry else "")
    if not terms:
        raise NailtoolError("--url needs --licence: under which one may it be used?")
    given = {"format": kind} if kind else {}
    base = entry.model_dump() if entry else {"name": name}
    try:
        file = PublicFile(url=url, sha256=sha256.lower())
        return PublicSet.model_validate({**base, **given, "licence": terms, "files": (file,)})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise NailtoolError(f"{place}: {first['msg']} (found '{first['input']}').") from error


def show_sets(terminal: Terminal, known: dict[str, PublicSet]) -> None:
    """The table of ``--list``."""
    terminal.table(
        "Public sets",
        ("name", "holds", "licence", "size", "SHA-256", "where"),
        (
            (
                entry.name,
                entry.holds,
                entry.licence,
                format_bytes(entry.size_bytes) if entry.size_bytes else "not known",
                f"{len(entry.files)} files" if entry.files else "none: give --url and --sha256",
                entry.homepage,
            )
            for entry in known.values()
        ),
    )
    terminal.emit({"sets": [entry.model_dump(mode="json") for entry in known.values()]})


def show_terms(terminal: Terminal, entry: PublicSet) -> None:
    """What is about to be downloaded, and under which licence."""
    terminal.note(f"{entry.name}: {entry.title or entry.holds or 'a set of your own'}")
    if entry.note:
        terminal.note(f"Note: {entry.note}")
    for file in entry.files:
        size = format_bytes(file.size_bytes) if file.size_bytes else "size not known"
        terminal.note(f"{file.url} ({size})\n  SHA-256 {file.sha256}")
    terminal.note(f"Licence: {entry.licence}{f', see {entry.homepage}' if entry.homepage else ''}")


def ask(terminal: Terminal, entry: PublicSet) -> None:
    """Raises NailtoolError unless the licence is accepted."""
    from nailcore.errors import NailtoolError

    if terminal.quiet or terminal.as_json:
        raise NailtoolError(
            "Nobody can be asked about the licence with --quiet or --json.", hint="Add --yes."
        )
    try:
        accepted = typer.confirm(f"Download it under the licence {entry.licence}?", err=True)
    except typer.Abort:
        accepted = False
    if not accepted:
        raise NailtoolError("The licence was not accepted; nothing was downloaded.", hint="--yes accepts it.")


def fetch_set(terminal: Terminal, entry: PublicSet, out: Path, cache: Path | None) -> None:
    """Download, verify, unpack and import; what was fetched is written beside the data."""
    import platformdirs

    from nailcore.data.fetching import download, unpack
    from nailcore.data.importing import ImportOrder, import_set
    from nailcore.data.importing.found import Wishes
    from nailcore.data.importing.names import parse_meanings
    from nailcore.storage import write_text
    from nailtool.count_bar import CountBar
    from nailtool.lock import hold_folder

    store = cache or platformdirs.user_cache_path("nailtool") / "data"
    existed = out.exists()
    try:
        with hold_folder(out, files=("annotations.json", "import.json", FETCHED)) as state:
            bars = not terminal.quiet and terminal.console().is_terminal
            paths = download(entry, store, progressbar=bars)
            terminal.note("Verified: every file has the SHA-256 it should have.")
            folder = unpack(entry, paths, state / "unpacked" / entry.name)
            order = ImportOrder(
                source=folder,
                out=out,
                format=entry.format,
                subject=entry.subject,
                name=entry.name,
                licence=entry.licence,
                wishes=Wishes(meanings=parse_meanings(entry.labels)),
            )
            with CountBar(terminal, "imported") as bar:
                record, worked = import_set(order, progress=bar)
            write_text(out / FETCHED, entry.model_dump_json(indent=1) + "\n")
            _drop(state / "unpacked")
    finally:
        if not existed:
            drop_unused(out)
    show_import(terminal, out, record, worked=worked)


def _drop(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
