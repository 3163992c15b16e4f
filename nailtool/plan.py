"""Training plans: a whole schedule as one TOML file, from rendered hands to weights for each input size."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.errors import NailtoolError, UnknownNameError, tell_problems

Settings = dict[str, Any]  # fields of nailcore.train.TrainConfig, checked by it
# What the plan itself decides: neither may be set behind its back.
OWN_SETTINGS = ("steps", "phases", "long_side_px")
SMOKE: Settings = {"batch": 2, "crop_px": 64, "warmup_steps": 1}


class HandsPlan(BaseModel):
    """The rendered hands (see ``nailtool data synth``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int = Field(gt=0)
    subjects: int = Field(default=300, ge=2)
    seed: int = Field(default=0, ge=0, le=99)
    renderer: Literal["raster", "photoreal"] = "raster"


class Mix(BaseModel):
    """A stretch of training: steps, shares of each batch, settings that differ from the plan's."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(gt=0)
    hands: float = Field(ge=0)
    photos: float = Field(ge=0)
    settings: Settings = {}

    @model_validator(mode="after")
    def _possible(self) -> Mix:
        if self.hands + self.photos <= 0:
            raise ValueError("hands and photos are both 0: nothing to learn from")
        _check_settings(self.settings)
        return self


class StagePlan(Mix):
    """One training, which starts from the weights of the stage before."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")


class SizesPlan(Mix):
    """The last stage's weights, fine-tuned for each of these input sizes.

    Crops are as large as the input, unless ``settings`` hold ``crop_px``.
    """

    px: tuple[int, ...] = ()


class TrainingPlan(BaseModel):
    """How a network is trained from the beginning to the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    depth: Literal[43, 55]
    encoder: str = "mobilenetv2"
    hands: HandsPlan
    settings: Settings = {}
    stages: tuple[StagePlan, ...] = Field(min_length=1)
    sizes: SizesPlan | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TrainingPlan:
        _check_settings(self.settings)
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        return self

    def list_stages(self) -> Iterator[tuple[str, int, Mix]]:
        """(folder name, input px or 0, stretch) of every training in its order."""
        for number, stage in enumerate(self.stages, start=1):
            yield f"{number}-{stage.name}", 0, stage
        for px in self.sizes.px if self.sizes else ():
            assert self.sizes is not None  # noqa: S101 - for mypy
            sized = self.sizes.model_copy(update={"settings": {"crop_px": px, **self.sizes.settings}})
            yield f"{len(self.stages) + 1}-size-{px}", px, sized

    def merge(self, mix: Mix) -> Settings:
        """The settings of one stretch."""
        return {**self.settings, **mix.settings, "steps": mix.steps}

    def choose_sizes(self, px: tuple[int, ...]) -> TrainingPlan:
        """The plan for some of its input sizes; raises UnknownNameError."""
        known = self.sizes.px if self.sizes else ()
        for size in px:
            if size not in known:
                raise UnknownNameError("input size of the plan", str(size), map(str, known))
        if self.sizes is None:  # and none was asked for
            return self
        return self.model_copy(update={"sizes": self.sizes.model_copy(update={"px": px})})

    def stop_after(self, name: str) -> TrainingPlan:
        """The plan up to the stage ``name``, without fine-tuning for sizes; raises UnknownNameError."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise UnknownNameError("stage of the plan", name, names)
        return self.model_copy(update={"stages": self.stages[: names.index(name) + 1], "sizes": None})

    def shrink(self) -> TrainingPlan:
        """The same stages with two steps each, on a dozen hands: to see that every step works."""
        small = {"steps": 2}
        hands = self.hands.model_copy(update={"count": 12, "subjects": 12, "renderer": "raster"})
        stages = tuple(
            s.model_copy(update={**small, "settings": {**s.settings, **SMOKE}}) for s in self.stages
        )
        sizes = self.sizes and self.sizes.model_copy(
            update={**small, "settings": {**self.sizes.settings, **SMOKE}}
        )
        return self.model_copy(update={"hands": hands, "stages": stages, "sizes": sizes})


def _check_settings(settings: Settings) -> None:
    own = sorted(set(settings) & set(OWN_SETTINGS))
    if own:
        raise ValueError(f"settings must not hold {', '.join(own)}: the plan says it elsewhere")
    from nailcore.train import FREE_SETTINGS

    machine = sorted(FREE_SETTINGS & set(settings))
    if machine:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in machine)
        raise ValueError(f"settings must not hold {', '.join(machine)}: the command takes {flags}")


def load_plan(name: str) -> TrainingPlan:
    """A shipped plan by its name, or a TOML file.

    Raises:
        UnknownNameError: no plan of that name.
        NailtoolError: not a valid plan; names the key, the value found and what is allowed.
    """
    from model_zoo import ROOT

    folder = ROOT / "plans"
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise NailtoolError(f"{path}: no such file, but --plan names it.")
        raise UnknownNameError("plan", name, (p.stem for p in folder.glob("*.toml")))
    try:
        return TrainingPlan.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NailtoolError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise NailtoolError(f"{path}: not a valid plan: {tell_problems(error, 'file')}") from error
