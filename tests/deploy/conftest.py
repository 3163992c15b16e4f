"""Fixtures that several test files of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.tiny_models import make_models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny sound model of each kind, by kind; copy before breaking."""
    return make_models(tmp_path_factory.mktemp("tiny-models"))
