"""Read JSON of unknown origin: bounded in size and nesting, strict about numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deploy.intake.folder import check_file, refuse

MAX_NESTING = 64  # ours reach 9
_MARK = re.compile(r'["\\\[\]{}]')


def read_json(path: Path, limit_bytes: int, what: str) -> Any:
    """The document at ``path``.

    Nesting is counted before parsing: libraries raise Python's recursion limit, and then its own parser
    runs out of stack and takes the process with it.

    Raises:
        ArtifactError: missing, too large, nested too deeply, or no JSON; ``what`` says what was expected.
    """
    check_file(path, limit_bytes)
    try:
        text = path.read_bytes().decode("utf-8")
        if _measure_nesting(text) > MAX_NESTING:
            raise refuse(path, f"is not {what}: nested deeper than {MAX_NESTING} levels.")
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise refuse(path, f"is not {what}: {type(error).__name__}: {error}.") from error


def _measure_nesting(text: str) -> int:
    """Deepest level of brackets outside strings; stops counting beyond the limit. Linear in the text."""
    level = deepest = 0
    inside = False
    escaped = -1  # position of a character that a backslash hides
    for match in _MARK.finditer(text):
        mark, place = match.group(), match.start()
        if place == escaped:
            continue
        if mark == "\\":
            escaped = place + 1 if inside else -1
        elif mark == '"':
            inside = not inside
        elif not inside:
            level += 1 if mark in "[{" else -1
            deepest = max(deepest, level)
            if deepest > MAX_NESTING:
                break
    return deepest


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")
