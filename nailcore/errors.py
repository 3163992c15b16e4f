"""Every error a user can meet, each with what was found, what was expected and what to do next.

NailtoolError              exit code 2   the input or the request is wrong
├── UnknownNameError       exit code 2   a variant, target, device, recipe or split that does not exist
├── DataError              exit code 2   a data folder, image or mask is missing or damaged
├── WeightsError           exit code 2   a weights file is missing, damaged or of another network
├── ArtifactError          exit code 2   a built file or its manifest is missing, damaged or changed
├── ConversionError        exit code 2   a converter failed, or did not keep what it was given
├── MissingToolError       exit code 3   this machine lacks something (a browser, an extra, disk space)
├── BrowserError           exit code 3   an installed browser does not start, hangs or crashes
├── BusyError              exit code 4   another nailtool process works in the same folder
└── CheckFailedError       exit code 1   the command worked and its verdict is "no"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NailtoolError(Exception):
    """A problem to show as one message; ``hint`` says what to do next."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; Exception's own pickling drops keyword arguments.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[NailtoolError], message: str, hint: str) -> NailtoolError:
    error = kind.__new__(kind)
    NailtoolError.__init__(error, message, hint=hint)
    return error


MOST_NAMES = 24  # in one message: a network has seventy layers


class UnknownNameError(NailtoolError):
    """A name outside a registry; the message carries the nearest known names."""

    def __init__(self, what: str, found: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(found, names, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        shown = ", ".join(names[:MOST_NAMES]) or "none"
        more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        super().__init__(f"Unknown {what} '{found}'; known: {shown}{more}.", hint=hint)


class DataError(NailtoolError):
    """A data folder, image or mask that cannot be used as it stands."""


class WeightsError(NailtoolError):
    """A weights or checkpoint file that is missing, damaged or belongs to another network."""


class ArtifactError(NailtoolError):
    """A built file or manifest that is missing, damaged, or not the one its manifest describes."""


class ConversionError(NailtoolError):
    """A converter failed or silently changed something it had to keep."""


class MissingToolError(NailtoolError):
    """Something this machine lacks: a browser, an optional dependency, disk space."""

    exit_code = 3


class BrowserError(NailtoolError):
    """A browser that is installed but does not start, hangs or crashes: no verdict about any file."""

    exit_code = 3


class BusyError(NailtoolError):
    """Another nailtool process holds the same output folder."""

    exit_code = 4


class CheckFailedError(NailtoolError):
    """A check ran to its end and its verdict is negative."""

    exit_code = 1


def tell_problems(error: Exception, whole: str = "the file", *, most: int | None = None) -> str:
    """What pydantic found, as ``key: problem``; any other error in its own words.

    Args:
        error: a ValidationError, or what else reading raised.
        whole: what a problem with no key of its own is about.
        most: of the problems to tell, without the values found, which may be whole files; None: all of them,
            with the values.
    """
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False)
    lines = [
        f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg']}"
        + ("" if most else f" (found {problem['input']!r})")
        for problem in problems[:most]
    ]
    left = len(problems) - len(lines)
    return "; ".join([*lines, *([f"and {left} more problems"] if left else [])])
