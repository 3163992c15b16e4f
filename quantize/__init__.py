"""Recipes: what precision an artefact has and which targets serve it; later, the passes that make it."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nailcore.errors import NailtoolError, UnknownNameError

RECIPES_DIR = Path(__file__).parent / "recipes"


class Recipe(BaseModel):
    """One precision recipe, read from ``recipes/<name>.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    summary: str
    targets: tuple[str, ...] = Field(min_length=1)  # kinds of target that serve it
    weights_dtype: str = "float32"
    compute_dtype: str = "float32"


def _load(path: Path) -> Recipe:
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise NailtoolError(f"{path}: not a valid recipe: {error}") from error
    if recipe.name != path.stem:
        raise NailtoolError(f"{path}: declares name '{recipe.name}'; name and file must agree.")
    return recipe


@cache
def load_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return {recipe.name: recipe for recipe in map(_load, sorted(RECIPES_DIR.glob("*.toml")))}


def find_recipe(name: str) -> Recipe:
    """One recipe by name; raises UnknownNameError with the nearest names."""
    recipes = load_recipes()
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes)
    return recipes[name]
