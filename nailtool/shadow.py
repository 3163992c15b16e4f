"""Are the sibling rooms really ours? Imports none of them, so that it can still say so when they are not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

ROOMS = ("nailcore", "model_zoo", "quantize", "deploy", "benchmark")
HOME = Path(__file__).resolve().parent.parent


def find_shadow(home: Path = HOME, rooms: Iterable[str] = ROOMS) -> tuple[str, str] | None:
    """(message, hint) when a room is missing or a foreign package of its name comes first."""
    for room in rooms:
        spec = importlib.util.find_spec(room)
        if spec is None:
            return (
                f"The package '{room}' is missing; it belongs beside nailtool in {home}.",
                "The installation is incomplete: install nailtool again.",
            )
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        found = Path(places[0]).resolve()
        folder = found.parent if found.name == "__init__.py" else found
        if folder != home / room:
            return (
                f"{folder} shadows nailtool's own package '{room}' in {home}.",
                "The names of nailtool's packages are generic. Run it from another folder, "
                "or take that one off PYTHONPATH.",
            )
    return None
