"""`nailtool recipes`: what each precision recipe does, which targets serve it, and what its keys mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption, load_registry
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from pydantic import BaseModel

    from quantize import Recipe


@guarded
def recipes(
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one in full.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the precision recipes: one file each, asked for with `build-variants --recipes`.

    The rung is a recipe's place on the recovery ladder (`nailtool ladder`), 0 for those beside it.

    Example: nailtool recipes fp16
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.rooms import select_names

    known = load_registry().recipes
    if name is None:
        _show_all(terminal, sorted(known.values(), key=rank_recipe))
    else:
        (recipe,) = select_names("recipe", name, known).values()
        _show_one(terminal, recipe)


def rank_recipe(recipe: Recipe) -> tuple[bool, bool, bool, int, str]:
    """Sort key: float first, then the rungs of the ladder, then the rest by name."""
    return (recipe.quantized, recipe.name != "fp32", recipe.rung == 0, recipe.rung, recipe.name)


def _show_all(terminal: Terminal, found: list[Recipe]) -> None:
    terminal.table(
        "Recipes",
        ("recipe", "rung", "targets", "stored as", "computed in", "default", "what it does"),
        (
            (
                recipe.name,
                str(recipe.rung or "–"),
                ", ".join(recipe.targets),
                recipe.weights_dtype,
                recipe.compute_dtype,
                "default" if recipe.default else "",
                recipe.summary,
            )
            for recipe in found
        ),
        right=("rung",),
    )
    terminal.show("default: built when no recipe is named. `nailtool recipes NAME` shows one in full.")
    terminal.emit({"recipes": [recipe.model_dump(mode="json") for recipe in found]})


def _show_one(terminal: Terminal, recipe: Recipe) -> None:
    terminal.table(f"Recipe {recipe.name}", ("key", "value", "what it says"), _list_keys("", recipe))
    terminal.emit({"recipe": recipe.model_dump(mode="json"), "schema": type(recipe).model_json_schema()})


def _list_keys(prefix: str, part: BaseModel) -> Iterator[tuple[str, str, str]]:
    """Rows of every key, tables after their own row; a table that is absent has one row."""
    from pydantic import BaseModel

    for key, field in type(part).model_fields.items():
        value: Any = getattr(part, key)
        meaning = field.description or ""
        if isinstance(value, BaseModel):
            yield (f"[{prefix}{key}]", "", meaning)
            yield from _list_keys(f"{prefix}{key}.", value)
        else:
            yield (f"{prefix}{key}", "none" if value is None else _write(value), meaning)


def _write(value: object) -> str:
    """A value as the TOML file writes it."""
    return json.dumps(value, ensure_ascii=False)
