"""`nailtool sensitivity` and `search` over a variant of 64 px: seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

from model_zoo import find_variant, weights_path
from nailtool import rooms
from nailtool.pipeline import Order
from nailtool.rooms import Registry
from quantize import load_recipes

VARIANT = "nail43-64"


def make_registry() -> Registry:
    """The shipped recipes and weights, with one small variant."""
    small = find_variant("nail43-288").model_copy(update={"name": VARIANT, "height_px": 64, "width_px": 64})
    return Registry(
        variants={VARIANT: small},
        recipes=dict(load_recipes()),
        targets={"onnx": "deploy.onnx"},
        devices={},
        weights_dir=weights_path(small).parent,
    )


def make_order(out: Path, data: Path, *, jobs: int = 1) -> Order:
    """Where it is measured."""
    return Order(make_registry(), out_dir=out, jobs=jobs, data=data)


def command(*arguments: str) -> list[str]:
    """Arguments after ``python`` that run the real command line over the small variant."""
    code = (
        "import sys; from nailtool import rooms; from nailtool.cli import main; "
        "from tests.nailtool.small_sensitivity import make_registry; "
        "made = make_registry(); rooms.find_registry = lambda: made; main(sys.argv[1:])"
    )
    assert callable(rooms.find_registry)  # what is replaced
    return ["-c", code, *arguments]
