"""The command line: parses, checks that the rooms are ours, and calls. Imports nothing heavy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer


def make_app() -> typer.Typer:
    """All commands in one application; a new command is one line here."""
    import typer

    from nailtool.commands import (
        ablate,
        adopt,
        benchmark,
        build,
        card,
        data,
        doctor,
        evaluate,
        ladder,
        parity,
        recipes,
        report,
        retrain,
        run_coreml,
        search,
        sensitivity,
        train,
    )

    app = typer.Typer(
        name="nailtool",
        help="Build, check and time a small nail-segmentation network for phones and browsers.\n\n"
        "Start with `nailtool doctor`, then `nailtool report`.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(show_version)
    app.command("build-variants")(build.build_variants)
    app.command("parity-check")(parity.parity_check)
    app.command("run-coreml")(run_coreml.run_coreml)
    app.command("train")(train.train)
    app.command("retrain")(retrain.retrain)
    app.command("card")(card.card)
    app.command("adopt")(adopt.adopt)
    app.command("ablate")(ablate.ablate)
    app.command("evaluate")(evaluate.evaluate)
    app.command("benchmark")(benchmark.benchmark)
    app.command("report")(report.report)
    app.command("ladder")(ladder.ladder)
    app.command("recipes")(recipes.recipes)
    app.command("search")(search.search)
    app.command("sensitivity")(sensitivity.sensitivity)
    app.command("devices")(doctor.devices)
    app.command("doctor")(doctor.doctor)
    app.add_typer(data.app, name="data")
    return app


def show_version() -> None:
    """Build, check and time a small nail-segmentation network for phones and browsers.

    Start with `nailtool doctor`, then `nailtool report`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``nailtool`` command; always ends with SystemExit."""
    from nailtool.shadow import find_shadow

    shadow = find_shadow()
    if shadow is not None:
        message, hint = shadow
        sys.stderr.write(f"Error: {message}\n→ {hint}\n")
        raise SystemExit(2)
    try:
        make_app()(args=None if arguments is None else list(arguments), prog_name="nailtool")
    except KeyboardInterrupt:  # before a command was reached
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
