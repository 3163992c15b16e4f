"""The front door: command line, pipeline and public API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nailcore.errors import NailtoolError
    from nailtool.pipeline import (
        Order,
        build_variants,
        check_parity,
        evaluate_accuracy,
        make_report,
        measure_latency,
    )
    from nailtool.rooms import Registry, find_registry

__all__ = [
    "NailtoolError",
    "Order",
    "Registry",
    "build_variants",
    "check_parity",
    "evaluate_accuracy",
    "find_registry",
    "make_report",
    "measure_latency",
]

_HOMES = {
    "NailtoolError": "nailcore.errors",
    "Registry": "nailtool.rooms",
    "find_registry": "nailtool.rooms",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): ``import nailtool`` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'nailtool' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "nailtool.pipeline")), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
