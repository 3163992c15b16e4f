"""Quantization: recipes, and the passes on a network in hand that they ask for."""

from __future__ import annotations

from quantize.recipe import RECIPES_DIR, Recipe, find_recipe, load_recipe, load_recipes

__all__ = ["RECIPES_DIR", "Recipe", "find_recipe", "load_recipe", "load_recipes"]
