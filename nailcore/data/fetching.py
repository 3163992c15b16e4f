"""Public data sets: a registry of small TOML files, verified downloads, and safe unpacking."""

from __future__ import annotations

import re
import shutil
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nailcore.errors import DataError, MissingToolError
from nailcore.storage import hash_file, replacing

REGISTRY_DIR = Path(__file__).parent / "public"
TIMEOUT_S = 30.0  # without a byte
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


class PublicFile(BaseModel):
    """One file of a public set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: str = Field(pattern=r"^https?://[^\s]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int | None = Field(default=None, gt=0)  # None: not known before the download
    path: str = ""  # where it belongs in the set's folder; default: the URL's last part

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError(f"'{path}' leads out of the set's folder")
        return path

    @property
    def name(self) -> str:
        """Relative path in the set's folder."""
        last = self.url.partition("?")[0].rstrip("/").rpartition("/")[2]
        return self.path or re.sub(r"[^\w.-]", "_", last) or "download"


class PublicSet(BaseModel):
    """One public set: what it holds, under which licence, and how it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = ""
    homepage: str = ""
    licence: str = Field(min_length=1)
    holds: str = ""
    format: str = "auto"  # of `nailtool data import`
    subject: str = ""  # rule for `nailtool data import --subject`
    labels: tuple[str, ...] = ()  # NAME=MEANING, as for --label
    root: str = ""  # the folder inside the archive that is imported
    note: str = ""
    files: tuple[PublicFile, ...] = ()  # empty: no hash is known yet, the user has to give one

    @property
    def size_bytes(self) -> int | None:
        """Of all files; None when one of them is not known."""
        sizes = [file.size_bytes for file in self.files]
        return None if not sizes or None in sizes else sum(size or 0 for size in sizes)


def read_registry(folders: Iterable[Path] = (REGISTRY_DIR,)) -> dict[str, PublicSet]:
    """Every set of the registry folders by name; later folders win.

    Raises:
        DataError: a folder is missing, or a file in it is damaged; names the file and the key.
    """
    found = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such registry folder.")
        for path in sorted(folder.glob("*.toml")):
            try:
                data: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
                entry = PublicSet.model_validate(data)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: not readable TOML: {error}.") from error
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise DataError(
                    f"{path}: {place}: {first['msg']} (found {str(first.get('input'))[:60]})."
                ) from error
            found[entry.name] = entry
    return found


def download(entry: PublicSet, cache: Path, *, progressbar: bool = False) -> list[Path]:
    """Download every file of a set that is not in the cache yet, and verify all of them.

    A file that is interrupted or of another hash is not kept; those that are complete are.

    Raises:
        DataError: the server refuses, is gone or breaks off; or a file has another SHA-256.
    """
    import logging

    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    folder, paths = cache / entry.name, []
    for file in entry.files:
        target = folder / file.name
        try:
            # A file in the cache that was damaged since is downloaded again.
            if target.is_file() and hash_file(target) != file.sha256:
                target.unlink()
            pooch.retrieve(
                url=file.url,
                known_hash=f"sha256:{file.sha256}",
                fname=file.name,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=progressbar, timeout=TIMEOUT_S),
            )
        except requests.exceptions.RequestException as error:
            raise DataError(
                f"{file.url}: the download failed: {_shorten(error)}.",
                hint="Run the same command again; files that are complete are kept.",
            ) from error
        except ValueError as error:
            got = re.search(r"got:?\s*([0-9a-f]{64})", str(error))
            raise DataError(
                f"{file.url}: its SHA-256 is {got[1] if got else 'another one'}, expected {file.sha256}; "
                "it was not kept.",
                hint="It changed, or is not what it claims to be. Do not use it before you know which.",
            ) from error
        paths.append(target)
    return paths


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def unpack(entry: PublicSet, paths: Iterable[Path], folder: Path) -> Path:
    """Unpack archives (other files are copied) into a new folder; returns the one to import.

    Raises:
        DataError: an archive is damaged, leads out of its folder, or lacks the set's ``root``.
        MissingToolError: it would not fit on the disk.
    """
    with replacing(folder) as scratch:
        scratch.mkdir()
        for file, path in zip(entry.files, paths, strict=True):
            if path.name.lower().endswith(_ARCHIVES):
                _unpack_one(path, scratch)
            else:
                target = scratch / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    root = folder / entry.root if entry.root else folder
    if not root.is_dir():
        raise DataError(f"{entry.name}: its archive holds no folder '{entry.root}'.")
    inside = [p for p in root.iterdir() if not p.name.startswith((".", "__MACOSX"))]
    # Most archives wrap everything into one folder.
    return inside[0] if not entry.root and len(inside) == 1 and inside[0].is_dir() else root


def _unpack_one(path: Path, folder: Path) -> None:
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                _check_room(sum(i.file_size for i in archive.infolist()), folder, path)
                archive.extractall(folder)  # noqa: S202 - zipfile strips drives, roots and ..
        else:
            with tarfile.open(path) as archive_tar:
                _check_room(sum(m.size for m in archive_tar.getmembers()), folder, path)
                archive_tar.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}.") from error


def _check_room(needed_bytes: int, folder: Path, path: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > 0.9 * free:
        raise MissingToolError(
            f"{path.name} unpacks to {needed_bytes / 1e6:.0f} MB; {free / 1e6:.0f} MB are free.",
            hint="Free some disk space, or choose another folder with --cache.",
        )
