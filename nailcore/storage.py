"""Hashing and atomic writing: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nailcore.errors import ArtifactError, MissingToolError

_CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(path: Path) -> list[Path]:
    """All files below a folder (or the file itself), sorted by POSIX relative path."""
    if path.is_file():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix())


def hash_path(path: Path) -> str:
    """SHA-256 of a file; of a folder: of the sorted lines ``<file hash>  <relative path>``.

    Raises:
        ArtifactError: the path does not exist.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist.")
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in list_files(path):
        digest.update(f"{hash_file(file)}  {file.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in list_files(path))


@contextlib.contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MissingToolError(
                f"No space left while writing {path}; nothing there was changed.",
                hint="Free some disk space, or choose another folder with --out, and run again.",
            ) from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder; on success it takes the place of ``path``.

    Works for files and folders. On any exception the scratch is removed and ``path`` is untouched.

    Raises:
        MissingToolError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch_dir = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    scratch, old = scratch_dir / path.name, scratch_dir / ".old"
    try:
        with _naming_full_disk(path):
            yield scratch
            if path.is_dir() and scratch.exists():
                # A folder cannot be renamed over a non-empty one: move the old aside first.
                path.replace(old)
            scratch.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        shutil.rmtree(scratch_dir, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as scratch:
        scratch.write_text(text, "utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as scratch:
        scratch.write_bytes(data)
