"""A small registry over the fake targets: two variants, five artefacts each costing nothing."""

from __future__ import annotations

from pathlib import Path

from nailcore.variant import Variant
from nailtool.rooms import Registry
from quantize import Recipe


def make_registry(folder: Path, *, deep: str = "go", shallow: str = "go") -> Registry:
    """A registry whose weights tell the fake converter what to do: go, refuse, crash, die or sleep."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    for name, order in (("nail55", deep), ("nail43", shallow)):
        path = weights / f"{name}.safetensors"
        if not path.exists():
            path.write_text(f"{order} {name}")
    variants = [
        Variant(name="nail55-64", encoder_layers=55, height_px=64, width_px=64, weights="nail55"),
        Variant(name="nail43-64", encoder_layers=43, height_px=64, width_px=64, weights="nail43"),
    ]
    recipes = [
        Recipe(name="fp32", summary="", targets=("onnx", "tfjs")),
        Recipe(name="fp16", summary="", targets=("tfjs",)),
    ]
    return Registry(
        variants={variant.name: variant for variant in variants},
        recipes={recipe.name: recipe for recipe in recipes},
        targets={"onnx": "tests.nailtool.fake_target", "tfjs": "tests.nailtool.fake_child_target"},
        devices={"cpu": "tests.nailtool.fake_device"},
        weights_dir=weights,
    )


def command(folder: Path, *arguments: str, deep: str = "go", shallow: str = "go") -> list[str]:
    """Arguments after ``python`` that run the real command line over the fake registry."""
    code = (
        "import sys; from pathlib import Path; from nailtool import rooms; from nailtool.cli import main; "
        "from tests.nailtool.house import make_registry; "
        f"made = make_registry(Path({str(folder)!r}), deep={deep!r}, shallow={shallow!r}); "
        "rooms.find_registry = lambda: made; main(sys.argv[1:])"
    )
    return ["-c", code, *arguments]
