"""Jobs write their facts at the end, and leave none where there is no verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark import parity
from nailcore.errors import BrowserError
from nailtool import jobs


def test_an_engine_that_fails_leaves_no_verdict_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact, heatmaps = tmp_path / "fact.json", tmp_path / "fact"
    fact.write_text("an earlier verdict")

    def crash(*_: Any, **__: Any) -> None:
        raise BrowserError("The browser crashed.")

    monkeypatch.setattr(parity, "check_parity", crash)
    monkeypatch.setattr(jobs, "_open_dataset", lambda _: None)
    with pytest.raises(BrowserError):
        jobs.check_parity(
            manifest=tmp_path / "m",
            weights=tmp_path / "w",
            data=tmp_path,
            engine="chromium-wasm",
            fact=fact,
            heatmap_dir=heatmaps,
            golden=None,
            progress=lambda done, total: None,
        )
    assert list(tmp_path.iterdir()) == []
