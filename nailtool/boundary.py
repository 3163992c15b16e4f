"""Where errors end: one clear message on stderr and an exit code, whatever went wrong."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

import typer

from nailcore.errors import NailtoolError
from nailtool.terminal import Terminal

EXIT_CRASH = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130

CommandT = TypeVar("CommandT", bound=Callable[..., None])


def guarded(command: CommandT) -> CommandT:
    """Turn what a command raises into a message, an exit code and, with ``--json``, a document."""

    @functools.wraps(command)
    def run(**options: object) -> None:
        terminal = Terminal(quiet=bool(options.get("quiet")), as_json=bool(options.get("as_json")))
        try:
            command(**options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            message = "interrupted; finished artefacts are kept; run the same command to resume"
            _end(terminal, "interrupted", message.partition("; ")[2], "", EXIT_INTERRUPTED)
        except NailtoolError as error:
            _end(terminal, type(error).__name__, error.message, error.hint, error.exit_code)
        except Exception as error:
            log = write_crash()
            message = f"{type(error).__name__}: {error}"
            hint = f"This is a defect of nailtool. The traceback is in {log}; please report it."
            _end(terminal, "Unexpected error", message, hint, EXIT_CRASH)

    return cast(CommandT, run)


def _end(terminal: Terminal, kind: str, message: str, hint: str, code: int) -> None:
    title = "Interrupted:" if code == EXIT_INTERRUPTED else "Error:" if code != EXIT_CRASH else f"{kind}:"
    terminal.complain(title, message, hint)
    terminal.emit({"error": {"kind": kind, "message": message, "hint": hint, "exit_code": code}})
    raise typer.Exit(code)


def write_crash() -> Path:
    """Write the traceback of the exception being handled to the user's log folder."""
    import tempfile

    import platformdirs

    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for folder in (platformdirs.user_log_path("nailtool"), Path(tempfile.gettempdir())):
        path = folder / f"nailtool-crash-{stamp}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(traceback.format_exc(), "utf-8")
        except OSError:
            continue
        return path
    return Path("(nowhere: no folder could be written to)")
