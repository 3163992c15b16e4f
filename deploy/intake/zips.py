"""Zip archives of models: opened into a temporary folder with limits, or refused."""

from __future__ import annotations

import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from deploy.intake.folder import MAX_ARTIFACT_BYTES, MAX_DEPTH, MAX_FILES, check_file, check_relative, refuse

MAX_RATIO = 100  # unpacked to packed: weights compress by a tenth, zeros (a bomb) by a thousand
_CHUNK_BYTES = 1 << 20
_LITTER = ("__MACOSX", ".DS_Store")  # what Finder adds to every archive


@contextmanager
def unpack_zip(path: Path, limit: int = MAX_ARTIFACT_BYTES) -> Iterator[Path]:
    """Yield the model inside an archive, unpacked below a temporary folder that goes away afterwards.

    Args:
        path: the archive; its one top-level entry is the model (or its files lie at the top).
        limit: bytes it may have, packed and unpacked.

    Raises:
        ArtifactError: no archive, damaged, encrypted, too large, too many entries, a compression ratio
            only bombs have, entries that overlap, link or leave the folder.
    """
    check_file(path, limit)
    with tempfile.TemporaryDirectory(prefix="nailtool-unzip-") as scratch:
        target = Path(scratch)
        try:
            with zipfile.ZipFile(path) as archive:
                entries = _check_entries(path, archive, limit)
                _extract(path, archive, entries, target, limit)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise refuse(path, f"is no readable zip archive: {error}.") from error
        except (OSError, ValueError, RuntimeError, UnicodeError) as error:
            raise refuse(path, f"cannot be unpacked: {error}.") from error
        top = sorted(target.iterdir())
        yield top[0] if len(top) == 1 else target


@contextmanager
def open_or_unpack(path: Path, limit: int = MAX_ARTIFACT_BYTES) -> Iterator[Path]:
    """The model at ``path`` itself, or the one inside when ``path`` is a .zip; errors as ``unpack_zip``."""
    if path.suffix.lower() == ".zip":
        with unpack_zip(path, limit) as inside:
            yield inside
    else:
        yield path


def _check_entries(path: Path, archive: zipfile.ZipFile, limit: int) -> list[zipfile.ZipInfo]:
    """Everything that the directory of the archive alone can tell."""
    listed = archive.infolist()
    if len(listed) > MAX_FILES:
        raise refuse(path, f"holds {len(listed)} entries; the limit is {MAX_FILES}.")
    entries = [one for one in listed if not set(PurePosixPath(one.filename).parts) & set(_LITTER)]
    names: set[str] = set()
    for one in entries:
        name = check_relative(path, one.filename.rstrip("/"), "an entry")
        if len(name.parts) > MAX_DEPTH:
            raise refuse(path, f"entry {one.filename!r} lies deeper than {MAX_DEPTH} folders.")
        if str(name).casefold() in names:
            raise refuse(path, f"holds {one.filename!r} twice.")
        names.add(str(name).casefold())
        if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(path, f"entry {one.filename!r} is a link or a device.")
        if one.flag_bits & 0x1:
            raise refuse(path, "is encrypted.")
    total = sum(one.file_size for one in entries)
    if total > limit:
        raise refuse(path, f"unpacks to {total:,} bytes; the limit is {limit:,}.")
    packed = path.stat().st_size
    if total > MAX_RATIO * packed:
        raise refuse(path, f"unpacks {packed:,} bytes to {total:,}, more than {MAX_RATIO} times: a zip bomb?")
    _check_overlap(path, entries)
    if not any(not one.is_dir() for one in entries):
        raise refuse(path, "holds no file.")
    return entries


def _check_overlap(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Entries that share compressed bytes are how a small archive unpacks to petabytes."""
    end = 0
    for one in sorted(entries, key=lambda entry: entry.header_offset):
        if one.header_offset < end:
            raise refuse(path, f"entry {one.filename!r} overlaps the one before it.")
        end = one.header_offset + 30 + one.compress_size


def _extract(
    path: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], target: Path, limit: int
) -> None:
    """Write the entries, counting what really comes out: sizes in the directory may lie."""
    written = 0
    for one in entries:
        place = target / one.filename.rstrip("/")
        if one.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(one) as source, place.open("xb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                if written > limit:
                    raise refuse(path, f"unpacks to more than {limit:,} bytes.")
                sink.write(chunk)
