"""The Chromium device: complete raw samples of every artefact, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.devices import chromium
from benchmark.latency import ProfileSettings
from deploy import tfjs
from nailcore.artifact import write_manifest
from nailcore.errors import ArtifactError
from tests.browser_marks import skip_without_browser
from tests.deploy.tiny_onnx import FP32, VARIANT, write_onnx


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfjs")
    path = folder / "tiny-64.fp32.tfjs"
    parent = write_onnx(folder / "tiny.onnx")
    return write_manifest(path, tfjs.convert(VARIANT, FP32, parent, path))


@pytest.mark.browser
@skip_without_browser
def test_every_round_leaves_its_samples(manifest: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = ProfileSettings(rounds=2, warmup=1, runs_per_round=2)
    facts = chromium.profile([manifest, manifest], settings, lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(facts) == 2
    for fact in facts:
        assert fact.artifact.variant == "tiny-64"
        assert len(fact.cpu_ms) == settings.rounds
        assert len(fact.wall_ms) == settings.rounds * fact.cpu_batch
        assert fact.cpu_batch >= settings.runs_per_round
        assert min(fact.wall_ms) > 0
        # A batch lasts long enough for the browser's 10 ms clock to see it.
        assert fact.median_cpu_ms > 0
        assert min(fact.load_ms, fact.first_ms) > 0
        assert fact.settings["backend"] == "wasm"
        assert fact.settings["threads"] == "1"
        assert fact.settings["cross-origin isolated"] == "yes"
        assert {"chromium", "tfjs-core", "tfjs-backend-wasm"} <= set(fact.versions)


@pytest.mark.browser
@skip_without_browser
def test_a_changed_artefact_is_not_timed(manifest: Path, tmp_path: Path) -> None:
    copy = tmp_path / manifest.name
    copy.write_bytes(manifest.read_bytes())
    folder = tmp_path / "tiny-64.fp32.tfjs"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    with pytest.raises(ArtifactError, match="changed since it was built"):
        chromium.profile([copy], ProfileSettings(rounds=1), lambda *_: None)


def test_without_a_browser_the_obstacle_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAILTOOL_BROWSER", str(tmp_path / "absent"))
    obstacle = chromium.find_obstacle()
    assert obstacle is not None
    assert "NAILTOOL_BROWSER" in obstacle.reason
    assert "apt-get install chromium" in obstacle.remedy
