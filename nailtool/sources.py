"""Which of our own source files a stage depends on: the import closure of its entry modules."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from nailcore.errors import NailtoolError
from nailcore.storage import hash_file
from nailtool.shadow import HOME, ROOMS


@cache
def find_module(name: str) -> Path | None:
    """The source file of a module of our rooms, or None when it is none of ours."""
    if name.partition(".")[0] not in ROOMS:
        return None
    base = HOME.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def find_imports(name: str) -> frozenset[str]:
    """Modules of ours that one module imports anywhere in its text, parents included."""
    path = find_module(name)
    if path is None:
        return frozenset()
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise NailtoolError(f"{path}: cannot be parsed: {error}") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return frozenset(found for found in _list_imports(tree, package) if find_module(found))


def _list_statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every statement at any depth; expressions, the bulk of a tree, cannot import."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers", "finalbody", "cases"):
            yield from _list_statements(getattr(node, part, ()))


def _list_imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in _list_statements(tree.body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `from . import x`: level 1 is the package itself
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            yield from _with_parents(base)
            # `from deploy import onnx` may name a module.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def find_closure(entries: Iterable[str]) -> list[str]:
    """Entry modules and everything of ours they import, directly or not; sorted."""
    seen: set[str] = set()
    waiting = [part for entry in entries for part in _with_parents(entry) if find_module(part)]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(find_imports(name) - seen)
    return sorted(seen)


@cache
def _hash_once(path: Path) -> str:
    return hash_file(path)


def hash_sources(entries: Iterable[str]) -> dict[str, str]:
    """Relative path -> SHA-256 of every source file in the closure of the entry modules."""
    found = {}
    for name in find_closure(entries):
        path = find_module(name)
        if path is not None:
            found[path.relative_to(HOME).as_posix()] = _hash_once(path)
    return found
