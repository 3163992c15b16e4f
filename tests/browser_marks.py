"""Marks of tests that drive a browser: they skip, with the way to get them in, where none is installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy import chromium, firefox, webkit
from nailcore.errors import MissingToolError


def _skip_unless(check: Callable[[], object]) -> pytest.MarkDecorator:
    try:
        check()
    except MissingToolError as error:
        return pytest.mark.skip(reason=str(error).replace("\n", " "))
    return pytest.mark.skipif(False, reason="installed")


skip_without_browser = _skip_unless(chromium.find_browser)
skip_without_firefox = _skip_unless(lambda: firefox.check_tools(gpu=False))
skip_without_webkit = _skip_unless(webkit.check_tools)
SKIP_WITHOUT = {
    "chromium": skip_without_browser,
    "firefox": skip_without_firefox,
    "webkit": skip_without_webkit,
}


def engine_mark(engine: str) -> pytest.MarkDecorator:
    """The mark of a TF.js engine's browser."""
    return SKIP_WITHOUT[engine.partition("-")[0]]
