"""How a benchmark program ends: one message and an exit code instead of a traceback for errors we know."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from nailcore.errors import NailtoolError, tell_problems


def run_program(main: Callable[..., None]) -> None:
    """Run a typer function as a program; exit codes are those of ``nailtool``."""
    import typer

    with reporting():
        typer.run(main)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """End the program with our error's message and exit code; impossible settings count as ours."""
    from pydantic import ValidationError
    from rich.console import Console
    from rich.markup import escape

    try:
        try:
            yield
        except ValidationError as wrong:
            raise NailtoolError(f"Impossible settings: {tell_problems(wrong, 'settings')}.") from wrong
    except NailtoolError as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from error
