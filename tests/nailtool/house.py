"""A small registry over the fake targets (two variants, six artefacts that cost nothing), and its runs."""

from __future__ import annotations

from pathlib import Path

from nailcore.variant import Variant
from nailtool.pipeline import Order, build_variants
from nailtool.rooms import Registry
from nailtool.stage import StageResult
from nailtool.stages import Unit
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


def make_order(tmp_path: Path, *, explain: bool = False, deep: str = "go", force: bool = False) -> Order:
    """An order over the fake registry; ``deep`` tells the deep variant's converter what to do."""
    registry = make_registry(tmp_path, deep=deep)
    return Order(registry, out_dir=tmp_path / "out", jobs=2, explain=explain, force=force)


def all_units(order: Order) -> list[Unit]:
    """Every unit of the registry."""
    registry = order.registry
    return order.plan.list_units(registry.variants.values(), registry.targets, registry.recipes.values())


def run(order: Order, units: list[Unit] | None = None) -> dict[str, StageResult]:
    """Build units; results by the name of their stage."""
    results = build_variants(order, units or all_units(order))
    return {result.stage.name: result for result in results}


def statuses(results: dict[str, StageResult]) -> dict[str, str]:
    """How each stage ended."""
    return {name: result.status for name, result in results.items()}
