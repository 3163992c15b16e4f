"""Latency: summaries, reasons for invalidity, and a real interleaved run on the CPU."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.devices import DEVICES, find_device
from benchmark.latency import ProfileSettings, Samples, find_invalidity, percentile
from deploy import find_target
from nailcore.artifact import write_manifest
from nailcore.errors import ArtifactError, NailtoolError, UnknownNameError
from nailcore.nets.cascade import build_cascade
from nailcore.nets.weights import save_weights
from nailcore.variant import Variant


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=50))
def test_median_matches_the_standard_library_and_p90_is_not_below_it(values: list[float]) -> None:
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values))
    assert percentile(values, 0.5) <= percentile(values, 0.9) <= max(values)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(NailtoolError, match="No samples"):
        percentile([], 0.5)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"threads": 0}, {"warmup": 0}, {"runs_per_round": -1}])
def test_impossible_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(NailtoolError, match=next(iter(bad))):
        ProfileSettings(**bad)


def test_few_samples_and_drift_make_a_row_invalid() -> None:
    steady = Samples(wall_ms=[10.0] * 12, cpu_ms=[10.0] * 12)
    assert find_invalidity(steady, 1) == []
    assert "only 3 samples" in find_invalidity(Samples(wall_ms=[1.0] * 3, cpu_ms=[1.0] * 3), 1)[0]
    drifting = Samples(wall_ms=[10.0] * 12, cpu_ms=[10.0] * 6 + [20.0] * 6)
    assert "drift: CPU time went from 10.0 to 20.0 ms" in find_invalidity(drifting, 1)[0]


def test_a_busy_machine_alone_does_not_invalidate() -> None:
    """Wall time doubles under load; CPU time is what a drift is judged by."""
    assert find_invalidity(Samples(wall_ms=[10.0] * 6 + [25.0] * 6, cpu_ms=[10.0] * 12), 1) == []


def test_cpu_device_interleaves_and_binds_rows_to_hashes(tmp_path: Path) -> None:
    manifests, hashes = [], []
    for size in (64, 96):
        variant = Variant(
            name=f"nail43-{size}", encoder_layers=43, height_px=size, width_px=size, weights="t"
        )
        torch.manual_seed(size)
        weights = tmp_path / f"{size}.safetensors"
        save_weights(build_cascade(variant), weights, {})
        path = tmp_path / f"{variant.name}.fp32.onnx"
        artifact = find_target("onnx").convert(variant, {"name": "fp32"}, weights, path)
        manifests.append(write_manifest(path, artifact))
        hashes.append(artifact.sha256)
    seen: list[tuple[int, int]] = []
    settings = ProfileSettings(rounds=6, warmup=2, runs_per_round=2, threads=1)
    small, large = find_device("cpu").profile(manifests, settings, lambda a, b: seen.append((a, b)))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert [small.artifact.sha256, large.artifact.sha256] == hashes
    for row in (small, large):
        assert len(row.wall_ms) == len(row.cpu_ms) == 12 and min(row.wall_ms) > 0
        assert row.settings["threads"] == "1" and row.settings["spinning"] == "off"
        assert row.load_ms > 0 and row.first_ms > 0 and row.versions["onnxruntime"]
        assert row.median_cpu_ms == pytest.approx(statistics.median(row.cpu_ms))
    assert small.median_cpu_ms < large.median_cpu_ms
    manifests[0].with_name("nail43-64.fp32.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="bytes changed"):
        find_device("cpu").profile(manifests, settings, lambda a, b: None)


def test_every_device_satisfies_the_seam_and_unknown_ones_get_suggestions() -> None:
    for name in DEVICES:
        device = find_device(name)
        assert name == device.NAME and device.KINDS
        obstacle = device.find_obstacle()
        assert obstacle is None or (obstacle.reason and obstacle.remedy)
    with pytest.raises(UnknownNameError, match="Did you mean chromium"):
        find_device("chrome")
