"""The recipe: one validated declaration of what precision a file has and how it gets there."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.errors import NailtoolError, UnknownNameError

RECIPES_DIR = Path(__file__).parent / "recipes"

StorageDtype = Literal["float32", "float16", "int8", "uint8", "uint16", "palette8", "palette6", "palette4"]
ComputeDtype = Literal["float32", "float16", "int8"]
CalibrationMethod = Literal["min-max", "percentile", "entropy", "mse"]


class _Part(BaseModel):
    # What stands under a key explains it: in `nailtool recipes NAME`, and in messages.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Weights(_Part):
    """How weights are rounded."""

    granularity: Literal["per-tensor", "per-channel", "per-group"] = "per-channel"
    """one scale (or table) per tensor, per output channel, or per group of output channels"""
    group_size: int = Field(default=0, ge=0)
    """output channels that share a scale or table; goes with per-group only"""
    channel_scale: bool = False
    """palettes: output channels are normalised before a table is fitted"""
    size_ratio: float | None = Field(default=None, gt=0, lt=1)
    """bits are spread over the layers so that the file is at most this share of its fp32 form"""
    keep_float: tuple[str, ...] = ()
    """layers that stay in float: torch module names, or prefixes ending in '.'"""

    @model_validator(mode="after")
    def _grouped(self) -> Weights:
        if (self.granularity == "per-group") != (self.group_size > 0):
            raise ValueError(
                f"granularity '{self.granularity}' with group_size {self.group_size}: "
                "a group size above 0 goes with 'per-group', and with nothing else"
            )
        return self


class Activations(_Part):
    """How activations are rounded where the arithmetic is integer."""

    dtype: Literal["uint8", "int8"] = "uint8"
    """what activations are rounded to"""
    symmetric: bool = False
    """whether 0 stands in the middle of the range, so that no zero point is needed"""


class Calibration(_Part):
    """Where ranges of activations come from: images of the training part, preprocessed as shipped."""

    method: CalibrationMethod = "min-max"
    """how a range follows from the activations seen"""
    images: int = Field(default=24, ge=1, le=1000)
    """how many images are looked at"""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """share of |activation| inside the range, in per cent; method 'percentile' only"""
    seed: int = Field(default=0, ge=0)
    """which images are drawn"""

    @model_validator(mode="after")
    def _used(self) -> Calibration:
        default = type(self).model_fields["percentile"].default
        if self.method != "percentile" and self.percentile != default:
            raise ValueError(
                f"percentile {self.percentile:g} with method '{self.method}': only 'percentile' has one"
            )
        return self


class Passes(_Part):
    """What is done to the float network before it is rounded."""

    equalize: bool = False
    """cross-layer equalization, guarded where a ReLU6 stands between"""
    correct_bias: bool = False
    """the mean shift that rounding causes is taken out of each bias"""


class Search(_Part):
    """The most sensitive layers stay in float until the promise holds."""

    max_drop_points: float = Field(default=0.2, gt=0)
    """the promise: nail-IoU points, at the upper end of the paired 95 % interval"""


class FineTune(_Part):
    """Quantization-aware training on the training part."""

    steps: int = Field(default=300, gt=0)
    """optimiser steps"""
    batch: int = Field(default=4, gt=0)
    """crops per step"""
    crop_px: int = Field(default=320, gt=0, multiple_of=32)
    """height and width of a crop"""
    lr: float = Field(default=0.03, gt=0, le=1)
    """highest learning rate, in levels of a kernel per step"""
    label_weight: float = Field(default=0.0, ge=0)
    """of the labels' loss beside the float network's answers; 0: the float network alone teaches"""
    seed: int = Field(default=0, ge=0)
    """of the sampling and the augmentation"""


class Recipe(_Part):
    """One precision recipe, read from ``recipes/<name>.toml``."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    """how it is asked for; the same as the file's name"""
    summary: str
    """what it does, in a few words"""
    targets: tuple[str, ...] = Field(min_length=1)
    """kinds of target that serve it"""
    default: bool = True
    """built when no recipe is named"""
    rung: int = Field(default=0, ge=0)
    """place on the recovery ladder; 0: not on it"""
    weights_dtype: StorageDtype = "float32"
    """how the file stores weights"""
    compute_dtype: ComputeDtype = "float32"
    """what the target computes in, where it has it"""
    weights: Weights = Weights()
    """how weights are rounded"""
    activations: Activations | None = None
    """how activations are rounded; integer arithmetic only"""
    calibration: Calibration | None = None
    """where ranges of activations come from"""
    passes: Passes = Passes()
    """what is done to the float network before it is rounded"""
    search: Search | None = None
    """keep the most sensitive layers in float until the promise holds"""
    finetune: FineTune | None = None
    """train on, with the rounding in the loop"""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        integer = self.compute_dtype == "int8"
        if integer != (self.activations is not None):
            raise ValueError(
                f"compute_dtype '{self.compute_dtype}' and [activations] "
                f"{'given' if self.activations else 'missing'}: integer arithmetic needs them, float has none"
            )
        if integer and self.weights_dtype != "int8":
            raise ValueError(
                f"compute_dtype 'int8' with weights_dtype '{self.weights_dtype}': "
                "integer arithmetic needs weights_dtype 'int8'"
            )
        if (integer or self.passes != Passes()) and self.calibration is None:
            raise ValueError(
                f"compute_dtype '{self.compute_dtype}' and passes.correct_bias {self.passes.correct_bias} "
                f"and passes.equalize {self.passes.equalize} without [calibration]: integer arithmetic and "
                "the passes need it"
            )
        self._check_rounding()
        return self

    def _check_rounding(self) -> None:
        """Choices about rounding where nothing is rounded."""
        about = [key for key in ("search", "finetune") if getattr(self, key) is not None]
        about += ["weights"] if self.weights != Weights() else []
        about += ["passes"] if self.passes != Passes() else []
        if about and not self.quantized:
            raise ValueError(
                f"weights_dtype '{self.weights_dtype}' with [{'], ['.join(about)}]: "
                "float weights are not rounded, so these would do nothing"
            )
        if self.weights.channel_scale and not self.weights_dtype.startswith("palette"):
            raise ValueError(
                f"weights.channel_scale true with weights_dtype '{self.weights_dtype}': only palettes have it"
            )

        if self.weights.size_ratio is not None and not self.weights_dtype.startswith(("palette", "uint8")):
            raise ValueError(
                f"weights.size_ratio {self.weights.size_ratio:g} with weights_dtype '{self.weights_dtype}': "
                "only palettes and uint8 have bits to spread"
            )

    @property
    def quantized(self) -> bool:
        """Whether weights are stored in less than a float."""
        return not self.weights_dtype.startswith("float")

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
        problems = error.errors(include_url=False)
        lines = " ".join(_phrase(problem["loc"], problem["type"], problem) for problem in problems)
        raise NailtoolError(
            f"{path}: not a valid recipe: {lines}", hint="`nailtool recipes fp32` shows every key."
        ) from error
    if recipe.name != path.stem:
        raise NailtoolError(f"{path}: declares name '{recipe.name}'; name and file must agree.")
    return recipe


def _phrase(where: Sequence[int | str], kind: str, problem: Mapping[str, Any]) -> str:
    """One sentence: key, value found, values allowed."""
    key, found = ".".join(map(str, where)), problem["input"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        part = find_part(where[:-1])
        allowed = ", ".join(part.model_fields)
        near = difflib.get_close_matches(str(where[-1]), part.model_fields, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        table = f"[{'.'.join(map(str, where[:-1]))}]" if where[:-1] else "a recipe"
        return f"Unknown key '{key}' (found {found!r}); keys of {table}: {allowed}.{guess}"
    if kind == "literal_error":
        return f"Key '{key}': found {found!r}, allowed: {context['expected']}."
    if kind == "missing":
        return f"Key '{key}' is missing."
    if kind == "value_error":
        return f"{'Table [' + key + ']' if key else 'Contradiction'}: {context['error']}."
    return f"Key '{key}': found {found!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}."


def find_part(where: Sequence[int | str]) -> type[BaseModel]:
    """The model of a table of a recipe: of ``()`` the recipe itself, of ``("weights",)`` Weights."""
    part: type[BaseModel] = Recipe
    for key in where:
        annotation = part.model_fields[str(key)].annotation
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        part = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return part


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
