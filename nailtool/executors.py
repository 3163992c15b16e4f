"""What executes a file here and is no Python library: its version decides whether a verdict is current."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from nailcore.errors import MissingToolError
from nailcore.runtime import Engine, Target
from nailtool.sources import find_module

VERSION_TIMEOUT_S = 20.0


def describe_place(target: Target, engine: Engine) -> dict[str, str]:
    """The browser an engine needs, its version, and what is in its way; empty where there is neither.

    An engine called ``<browser>-<backend>`` is driven by the module ``deploy.<browser>``, whose
    ``find_browser`` gives the executable. A target may say what an engine lacks by ``find_obstacle``.
    """
    find_obstacle = getattr(target, "find_obstacle", None)
    if find_obstacle is None:
        return _find_browser(engine)
    obstacle = find_obstacle(engine.name)
    # "none" is said as well: an input that is merely gone makes nothing stale.
    return _find_browser(engine) | {"obstacle": obstacle.reason if obstacle else "none"}


def _find_browser(engine: Engine) -> dict[str, str]:
    browser, _, backend = engine.name.partition("-")
    module = f"deploy.{browser}"
    if not backend or find_module(module) is None:
        return {}
    if not hasattr(importlib.import_module(module), "find_browser"):
        return {}
    return {"browser": _describe_browser(module)}


@cache
def _describe_browser(module: str) -> str:
    """Which browser it is: asked, because what is found is often a launcher that outlives an upgrade."""
    try:
        found: Path = importlib.import_module(module).find_browser()
    except MissingToolError:
        return "none"
    if sys.platform != "win32":  # there --version opens a window
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                [found, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True
            ).stdout.strip()
            if said:
                return said
    stat = found.stat()
    return f"{found.name}, {stat.st_size} bytes of {stat.st_mtime_ns}"
