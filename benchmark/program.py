"""How a benchmark program ends: one message and an exit code instead of a traceback for errors we know."""

from __future__ import annotations

from collections.abc import Callable

from nailcore.errors import NailtoolError


def run_program(main: Callable[..., None]) -> None:
    """Run a typer function as a program; exit codes are those of ``nailtool``."""
    import typer
    from rich.console import Console
    from rich.markup import escape

    try:
        typer.run(main)
    except NailtoolError as error:
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from error
