"""Refuses recipes that one of their targets would not carry out: the file would not be what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nailcore.errors import NailtoolError
from nailcore.service import Service
from quantize import Recipe

HINT = "Change the recipe, or take the target out of its targets; `nailtool recipes` lists what is served."


def find_service(kind: str) -> Service | None:
    """What the target declares; None for a kind that is none of ours, which is not judged."""
    from deploy import TARGETS, find_target

    return find_target(kind).SERVICE if kind in TARGETS else None


def check_served(recipe: Recipe) -> None:
    """Compare a recipe with what its targets make; a target that is none of ours is not judged.

    Raises:
        NailtoolError: naming recipe, target, key, value found and what that target knows.
    """
    for kind in recipe.targets:
        service = find_service(kind)
        problem = next(_list_problems(recipe, kind, service), "") if service else ""
        if problem:
            raise NailtoolError(f"quantize/recipes/{recipe.name}.toml: target '{kind}': {problem}", hint=HINT)


def keep_layers(kinds: Iterable[str]) -> tuple[str, ...]:
    """Those of some targets that leave single layers in float."""
    services = ((kind, find_service(kind)) for kind in kinds)
    return tuple(kind for kind, service in services if service is None or "keep_float" in service.obeyed)


def _list_problems(recipe: Recipe, kind: str, service: Service) -> Iterator[str]:
    """What the target would do otherwise than the recipe says, as sentences."""
    stored = f"weights_dtype '{recipe.weights_dtype}'"
    asked = _list_asked(recipe)
    ignored = [said for key, said in asked.items() if key not in service.obeyed]
    if recipe.weights_dtype not in service.stored:
        yield f"{stored}; it stores {', '.join(service.stored)}."
    if recipe.compute_dtype == "int8" and not service.integer:
        yield "compute_dtype 'int8'; it computes in float32."
    if service.integer_only and recipe.quantized and recipe.compute_dtype != "int8":
        yield f"{stored} with compute_dtype '{recipe.compute_dtype}'; its 8-bit weights go with 'int8'."
    if recipe.weights_dtype in service.calibrated and recipe.calibration is None:
        yield f"{stored} without [calibration]; weights are rounded on calibration images there."
    if ignored:
        known = [said for key, said in ASKED.items() if key in service.obeyed]
        yield f"{', '.join(ignored)}; of such keys it knows {', '.join(known) or 'none'}."
    if "size_ratio" in asked and recipe.calibration is None:
        yield "weights.size_ratio without [calibration]; bits are spread by what images show."
    beside = service.rounded_beside
    if beside is not None and recipe.quantized and set(recipe.targets) - set(beside):
        yield f"beside {', '.join(k for k in recipe.targets if k != kind)}; its weights are rounded before."


ASKED: Mapping[str, str] = {
    "correct_bias": "passes.correct_bias",
    "equalize": "passes.equalize",
    "search": "[search]",
    "finetune": "[finetune]",
    "keep_float": "weights.keep_float",
    "size_ratio": "weights.size_ratio",
}


def _list_asked(recipe: Recipe) -> dict[str, str]:
    """The keys that some target would not obey, as far as the recipe asks for them."""
    given = {
        "correct_bias": recipe.passes.correct_bias,
        "equalize": recipe.passes.equalize,
        "search": recipe.search is not None,
        "finetune": recipe.finetune is not None,
        "keep_float": bool(recipe.weights.keep_float),
        "size_ratio": recipe.weights.size_ratio is not None,
    }
    return {key: said for key, said in ASKED.items() if given[key]}
