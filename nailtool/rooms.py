"""What can be asked for by name: variants, recipes, targets and devices of the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nailcore.errors import NailtoolError, UnknownNameError
from nailcore.variant import Variant
from nailtool.served import check_served
from quantize import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Registry:
    """Everything that can be asked for by name. Targets and devices are named by their module."""

    variants: Mapping[str, Variant]
    recipes: Mapping[str, Recipe]
    targets: Mapping[str, str]  # kind -> module with convert() and open_runner()
    devices: Mapping[str, str]  # name -> module with profile() and find_obstacle()
    weights_dir: Path

    def weights_path(self, variant: Variant) -> Path:
        """The safetensors file a variant is built from."""
        return self.weights_dir / f"{variant.weights}.safetensors"


def find_registry() -> Registry:
    """The registry of the shipped rooms. Imports nothing heavy."""
    import deploy
    import model_zoo
    import quantize
    from benchmark import devices

    recipes = quantize.load_recipes()
    for recipe in recipes.values():
        for kind in set(recipe.targets) - set(deploy.TARGETS):
            raise UnknownNameError(f"target in quantize/recipes/{recipe.name}.toml", kind, deploy.TARGETS)
        check_served(recipe)
    return Registry(
        variants=model_zoo.load_variants(),
        recipes=recipes,
        targets={kind: f"deploy.{kind}" for kind in deploy.TARGETS},
        devices={name: f"benchmark.devices.{name}" for name in devices.DEVICES},
        weights_dir=model_zoo.WEIGHTS_DIR,
    )


def select_names(what: str, wanted: str | None, known: Mapping[str, T]) -> dict[str, T]:
    """The entries a comma-separated option asks for, in registry order; None asks for all.

    Raises:
        UnknownNameError: with the nearest known names.
    """
    if wanted is None:
        return dict(known)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        raise NailtoolError(
            f"--{what}s was given without a name.", hint=f"Known {what}s: {', '.join(sorted(known))}."
        )
    for name in names:
        if name not in known:
            raise UnknownNameError(what, name, known)
    return {name: value for name, value in known.items() if name in names}
