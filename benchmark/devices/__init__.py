"""What is measured on, one module per device kind; `find_device` imports only the one asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

from benchmark.latency import ProfileSettings
from nailcore.errors import UnknownNameError
from nailcore.facts import Measurement, Skipped

DEVICES = ("cpu", "chromium")  # a new device: one module, one word here


class Device(Protocol):
    """A device: a module in this package satisfies it."""

    NAME: str
    KINDS: tuple[str, ...]  # kinds of artefact it runs

    def find_obstacle(self) -> Skipped | None:
        """Why nothing can be measured on it here; None when it can."""

    def profile(
        self,
        manifests: Sequence[Path],
        settings: ProfileSettings,
        progress: Callable[[int, int], None],
    ) -> list[Measurement]:
        """Time the artefacts of these manifests, interleaved, in the order given."""


def find_device(name: str) -> Device:
    """The device module of a name; raises UnknownNameError with the nearest names."""
    if name not in DEVICES:
        raise UnknownNameError("device", name, DEVICES)
    return cast(Device, importlib.import_module(f"benchmark.devices.{name}"))
