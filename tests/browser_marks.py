"""The mark of tests that drive Chromium: they skip, with the way to get them in, where none is installed."""

from __future__ import annotations

import pytest

from deploy.chromium import find_browser
from nailcore.errors import MissingToolError


def _find_obstacle() -> str:
    try:
        find_browser()
    except MissingToolError as error:
        return str(error).replace("\n", " ")
    return ""


_obstacle = _find_obstacle()
skip_without_browser = pytest.mark.skipif(bool(_obstacle), reason=_obstacle)
