"""A device that measures nothing real."""

from __future__ import annotations

from nailcore.facts import Skipped

NAME = "cpu"
KINDS = ("onnx",)


def find_obstacle() -> Skipped | None:
    """Always in the way."""
    return Skipped(what="latency on cpu", reason="It is a fake.", remedy="Use a real one.")
