"""One command at a time in an output folder: the lock, leftovers of killed runs, and disk space."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from nailcore.artifact import MANIFEST_SUFFIX
from nailcore.errors import BusyError, MissingToolError, NailtoolError
from nailcore.storage import write_text

STATE_DIR = ".nailtool"
MINIMUM_FREE_BYTES = 1 << 29  # six variants take about 200 MB; converters need scratch space beside it
# What nailcore.storage.replacing leaves when it is killed: .<name>.<eight of tempfile's characters>.tmp
_SCRATCH = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp")


def state_dir(out_dir: Path) -> Path:
    """Where the pipeline keeps its lock file, logs and stage states."""
    return out_dir / STATE_DIR


def _owner_text(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        return f" (process {owner['pid']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def hold_folder(
    out_dir: Path,
    *,
    variants: Iterable[str] = (),
    files: Iterable[str] = ("embedded", "embedded-whole"),
    clear: bool = True,
) -> Iterator[Path]:
    """Create and lock an output folder, and clear what a killed run left; yields its state folder.

    ``variants`` are the folders, ``files`` the names directly in it that the holder writes.

    Raises:
        BusyError: another process works there.
        NailtoolError: the folder cannot be made or written to.
    """
    import filelock

    folder = state_dir(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NailtoolError(
            f"{out_dir}: cannot be used as an output folder: {error.strerror}.",
            hint="Choose a folder you may write to with --out.",
        ) from error
    lock = filelock.FileLock(folder / "lock")
    owner = folder / "owner.json"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BusyError(
            f"Another nailtool command works in {out_dir}{_owner_text(owner)}.",
            hint="Wait until it is done, or choose another folder with --out.",
        ) from error
    except OSError as error:
        raise NailtoolError(
            f"{out_dir}: cannot be written to: {error.strerror}.",
            hint="Choose a folder you may write to with --out.",
        ) from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(owner, json.dumps({"pid": os.getpid(), "since": since}) + "\n")
        if clear:
            clear_scratch(out_dir, variants, files)
        yield folder
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def clear_scratch(out_dir: Path, variants: Iterable[str], files: Iterable[str]) -> list[Path]:
    """Remove half-written files in a folder that is locked: nobody else can be writing them.

    Looks only where nailtool writes, because an output folder may be one that holds other things, too.
    A folder that was moved aside while it was being replaced is moved back.
    """
    names = set(files)
    found = [path for path in _list_scratch([out_dir]) if _target_of(path).name in names]
    variant_dirs = {out_dir / name for name in variants}
    variant_dirs |= {manifest.parent for manifest in out_dir.glob(f"*/*{MANIFEST_SUFFIX}")}
    found += _list_scratch(variant_dirs)
    found += _list_scratch([state_dir(out_dir)])
    for name in ("facts", "prepared", "sensitivity", "search"):
        folder = out_dir / name
        found += _list_scratch([folder, *(path for path in folder.rglob("*") if path.is_dir())])
    for path in found:
        aside, target = path / ".old", _target_of(path)
        if aside.exists() and not target.exists():
            aside.replace(target)
        shutil.rmtree(path, ignore_errors=True)
    return found


def _list_scratch(folders: Iterable[Path]) -> list[Path]:
    """Scratch folders directly in some folders; links are followed nowhere."""
    return [
        path
        for folder in folders
        if folder.is_dir() and not folder.is_symlink()
        for path in sorted(folder.iterdir())
        if _SCRATCH.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _target_of(scratch: Path) -> Path:
    """What a scratch folder was to become."""
    match = _SCRATCH.fullmatch(scratch.name)
    return scratch.with_name(match["name"] if match else scratch.name)


def check_free_space(folder: Path, minimum_bytes: int = MINIMUM_FREE_BYTES) -> None:
    """Say it before the work starts rather than after half of it.

    Raises:
        MissingToolError: less than the minimum is free.
    """
    free = shutil.disk_usage(folder).free
    if free < minimum_bytes:
        raise MissingToolError(
            f"Only {free / 1e6:.0f} MB are free where {folder} lies; "
            f"at least {minimum_bytes / 1e6:.0f} MB are needed.",
            hint="Free some disk space, or choose another folder with --out.",
        )
