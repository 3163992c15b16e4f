"""What a stage reads and writes, as pytask nodes whose state is content and never a timestamp."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nailcore.storage import hash_path, list_files

TOOLS_NODE = "tools"  # JSON: distribution -> version
SOURCE_NODE = "source"  # JSON: file of ours -> SHA-256

_Stamp = tuple[tuple[str, int, int, int], ...]
_hashes: dict[Path, tuple[_Stamp, str]] = {}


def _stamp(path: Path) -> _Stamp:
    def stamps() -> Iterator[tuple[str, int, int, int]]:
        for file in list_files(path):
            stat = file.stat()
            yield (str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino)

    return tuple(stamps())


def hash_content(path: Path) -> str:
    """SHA-256 of a file or folder.

    Remembered within one run only: a file changed between two runs is always read again, even when
    somebody restored its timestamp (pytask's own cache would be fooled by that).
    """
    stamp = _stamp(path)
    known = _hashes.get(path)
    if known is None or known[0] != stamp:
        known = (stamp, hash_path(path))
        _hashes[path] = known
    return known[1]


def forget_hashes() -> None:
    """Begin a run: trust nothing that was read before."""
    _hashes.clear()


def _signature(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class FileNode:
    """A file or folder; ``name`` is what people and the lock file call it, wherever it lies."""

    name: str
    location: Path
    attributes: dict[Any, Any] = field(default_factory=dict, compare=False)

    @property
    def signature(self) -> str:
        """Equal for the product of one stage and the input of the next."""
        return _signature(f"file {self.name}")

    def state(self) -> str | None:
        """Content hash; None when missing."""
        return hash_content(self.location) if self.location.exists() else None

    def load(self, is_product: bool = False) -> Path:
        """The path (pytask's protocol)."""
        return self.location

    def save(self, value: object) -> None:
        """Never used: stages write their own files."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True)
class ValueNode:
    """A configuration, a tool's version or a source hash: anything that is text and no file."""

    name: str
    value: str
    attributes: dict[Any, Any] = field(default_factory=dict, compare=False)

    @property
    def signature(self) -> str:
        """Distinct per value: two stages may know different values by one name."""
        return _signature(f"value {self.name} {self.value}")

    def state(self) -> str:
        """The value itself, so that the lock file and every reason can show it."""
        return self.value

    def load(self, is_product: bool = False) -> str:
        """The value (pytask's protocol)."""
        return self.value

    def save(self, value: object) -> None:
        """Never used: values are inputs only."""
        raise NotImplementedError(self.name)


Node = FileNode | ValueNode
