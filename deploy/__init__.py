"""Conversion targets, one module each; `find_target` imports only the one asked for."""

from __future__ import annotations

import importlib
from typing import cast

from nailcore.errors import UnknownNameError
from nailcore.runtime import Target

TARGETS = ("onnx", "coreml", "tfjs", "tflite")  # a new target: one module, one word here


def find_target(kind: str) -> Target:
    """The target module of a kind; raises UnknownNameError with the nearest names."""
    if kind not in TARGETS:
        raise UnknownNameError("target", kind, TARGETS)
    return cast(Target, importlib.import_module(f"deploy.{kind}"))
