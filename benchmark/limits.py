"""What an artefact must keep against the trained network: read from limits.toml, most general table first."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nailcore.artifact import Artifact
from nailcore.errors import NailtoolError
from nailcore.facts import Limits
from quantize import Recipe, find_recipe

LIMITS_FILE = Path(__file__).parent / "limits.toml"
NOT_JUDGED = "off"  # TOML has no null
OTHERS = "gates."  # tables of gates, which have figures of their own and read them themselves


def name_precision(recipe: Recipe) -> str:
    """The table of defaults a recipe falls under: its weights' dtype, and its arithmetic's if not float."""
    integer = not recipe.compute_dtype.startswith("float")
    return f"precision.{recipe.weights_dtype}" + (f"-{recipe.compute_dtype}" if integer else "")


@cache
def load_tables(path: Path = LIMITS_FILE) -> dict[str, dict[str, Any]]:
    """All tables by name.

    Raises:
        NailtoolError: the file is no TOML, or a table has an unknown figure or no reason.
    """
    try:
        tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NailtoolError(f"{path.name}: not valid TOML: {error}") from error
    for name, table in tables.items():
        if name.startswith(OTHERS):
            continue
        if not isinstance(table, dict) or not str(table.get("reason", "")).strip():
            raise NailtoolError(
                f"{path.name}: [{name!r}] gives no reason.", hint="Say in `reason` why these limits."
            )
        _build({"max_abs": None, "flipped_permille": 0.0}, [(name, table)], path)
    return tables


def limits_of(artifact: Artifact, engine: str = "", *, path: Path = LIMITS_FILE) -> Limits:
    """The limits a verdict about an artefact, executed by an engine, is reached by.

    Tables are laid over each other, the later one winning figure by figure: ``precision.<dtype>``,
    ``<kind>.<recipe>``, ``<kind>@<engine>``, ``<kind>.<recipe>@<engine>``.

    Raises:
        UnknownNameError: the artefact's recipe does not exist any more.
        NailtoolError: no table speaks of this artefact, or the file is damaged.
    """
    tables = load_tables(path)
    recipe = find_recipe(artifact.recipe)
    names = list(_list_names(artifact.kind, recipe, engine))
    found = [(name, tables[name]) for name in names if name in tables]
    if not any("flipped_permille" in table for _, table in found):
        raise NailtoolError(
            f"No limits for {artifact.label}: none of the tables {', '.join(names)} "
            "limits the flipped pixels.",
            hint=f'Add a table ["{names[0]}"] with a reason to benchmark/{path.name}.',
        )
    return _build({"max_abs": None}, found, path)


def _list_names(kind: str, recipe: Recipe, engine: str) -> Iterator[str]:
    yield name_precision(recipe)
    yield f"{kind}.{recipe.name}"
    if engine:
        yield f"{kind}@{engine}"
        yield f"{kind}.{recipe.name}@{engine}"


def _build(base: dict[str, Any], tables: list[tuple[str, dict[str, Any]]], path: Path) -> Limits:
    values = dict(base)
    for _, table in tables:
        values |= {key: None if value == NOT_JUDGED else value for key, value in table.items()}
    try:
        return Limits.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"[{tables[-1][0]!r}] {'.'.join(map(str, first['loc']))}"
        known = ", ".join(Limits.model_fields)
        raise NailtoolError(
            f"{path.name}: {where}: {first['msg']} (found {first['input']!r}).", hint=f"Figures: {known}."
        ) from error
