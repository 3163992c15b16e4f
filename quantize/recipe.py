"""The recipe: one validated declaration of what precision a file has and how it gets there."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.errors import NailtoolError, UnknownNameError

RECIPES_DIR = Path(__file__).parent / "recipes"

StorageDtype = Literal["float32", "float16", "int8", "uint8", "uint16", "palette8", "palette6", "palette4"]
ComputeDtype = Literal["float32", "float16", "int8"]
CalibrationMethod = Literal["min-max", "percentile", "entropy", "mse"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Part):
    """How weights are rounded: with one scale (or table) per tensor, output channel, or group of these."""

    granularity: Literal["per-tensor", "per-channel", "per-group"] = "per-channel"
    group_size: int = Field(default=0, ge=0)  # output channels that share a table; per-group only
    channel_scale: bool = False  # palettes: output channels are normalised before a table is fitted
    # torch module names, or prefixes ending in ".", that stay in float
    keep_float: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _grouped(self) -> Weights:
        if (self.granularity == "per-group") != (self.group_size > 0):
            raise ValueError(
                f"granularity '{self.granularity}' with group_size {self.group_size}: "
                "a group size goes with 'per-group', and with nothing else"
            )
        return self


class Activations(_Part):
    """How activations are rounded where the arithmetic is integer."""

    dtype: Literal["uint8", "int8"] = "uint8"
    symmetric: bool = False


class Calibration(_Part):
    """Where ranges of activations come from: images of the training part, preprocessed as shipped."""

    method: CalibrationMethod = "min-max"
    images: int = Field(default=24, ge=1, le=1000)
    percentile: float = Field(default=99.99, gt=50, le=100)  # of |activation|; method "percentile" only
    seed: int = Field(default=0, ge=0)


class Passes(_Part):
    """What is done to the float network before it is rounded."""

    equalize: bool = False  # cross-layer equalization, guarded where a ReLU6 stands between
    correct_bias: bool = False  # the mean shift that rounding causes is taken out of each bias


class Search(_Part):
    """The most sensitive layers stay in float until the promise holds."""

    max_drop_points: float = Field(default=0.2, gt=0)  # nail IoU, upper end of the paired 95 % interval


class FineTune(_Part):
    """Quantization-aware training on the training part."""

    steps: int = Field(default=300, gt=0)
    batch: int = Field(default=8, gt=0)
    crop_px: int = Field(default=320, gt=0, multiple_of=32)
    lr: float = Field(default=1e-4, gt=0)
    seed: int = Field(default=0, ge=0)


class Recipe(_Part):
    """One precision recipe, read from ``recipes/<name>.toml``."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    summary: str
    targets: tuple[str, ...] = Field(min_length=1)  # kinds of target that serve it
    default: bool = True  # built when no recipe is named
    rung: int = Field(default=0, ge=0)  # place on the recovery ladder; 0: not on it
    weights_dtype: StorageDtype = "float32"
    compute_dtype: ComputeDtype = "float32"
    weights: Weights = Weights()
    activations: Activations | None = None
    calibration: Calibration | None = None
    passes: Passes = Passes()
    search: Search | None = None
    finetune: FineTune | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        integer = self.compute_dtype == "int8"
        if integer != (self.activations is not None):
            raise ValueError(
                f"compute_dtype '{self.compute_dtype}' and [activations] "
                f"{'given' if self.activations else 'missing'}: integer arithmetic needs them, float has none"
            )
        if integer and self.weights_dtype != "int8":
            raise ValueError(f"integer arithmetic needs weights_dtype 'int8', found '{self.weights_dtype}'")
        if (integer or self.passes.correct_bias) and self.calibration is None:
            raise ValueError("integer arithmetic and correct_bias need [calibration]")
        return self

    @property
    def needs_preparation(self) -> bool:
        """Whether images or training have a say in the file: then a stage prepares them first."""
        parts = (self.calibration, self.search, self.finetune)
        return any(part is not None for part in parts) or self.passes != Passes()


def load_recipe(path: Path) -> Recipe:
    """Read one TOML declaration.

    Raises:
        NailtoolError: naming the file, key, value found and values allowed.
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NailtoolError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (found {e['input']!r})"
            for e in error.errors(include_url=False)
        )
        raise NailtoolError(f"{path}: not a valid recipe: {lines}") from error
    if recipe.name != path.stem:
        raise NailtoolError(f"{path}: declares name '{recipe.name}'; name and file must agree.")
    return recipe


@cache
def load_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return {recipe.name: recipe for recipe in map(load_recipe, sorted(RECIPES_DIR.glob("*.toml")))}


def find_recipe(name: str) -> Recipe:
    """One recipe by name; raises UnknownNameError with the nearest names."""
    recipes = load_recipes()
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes)
    return recipes[name]
