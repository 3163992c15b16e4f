"""Conversion stages: the pair in which an error arises is the one that is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import quantize
from benchmark.conversion_stages import compare_stages, describe_stages
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact, write_manifest
from nailcore.data.folder import Sample
from nailcore.divergence_facts import StagePair
from nailcore.errors import DataError, UnknownNameError
from nailcore.facts import read_fact, write_fact
from nailcore.storage import hash_path, size_bytes
from tests.benchmark.broken_onnx import change
from tests.browser_marks import skip_without_browser
from tests.built import build_artifact
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
WEIGHTS = weights_path(VARIANT)
FP32 = quantize.find_recipe("fp32").model_dump(mode="json")
FP16 = quantize.find_recipe("fp16").model_dump(mode="json")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return load_images(tmp_path_factory.mktemp("images") / "set").samples[:1]


def ship(folder: Path, *manifests: Path) -> Path:
    """An output folder that holds these artefacts."""
    out = folder / VARIANT.name
    out.mkdir(parents=True)
    for manifest in manifests:
        _, path = open_artifact(manifest)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, out / path.name)
        shutil.copyfile(manifest, out / manifest.name)
    return folder


def test_a_defect_of_the_shipped_file_shows_in_its_own_step(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    manifest = build_artifact(VARIANT.name, "onnx")
    out = ship(tmp_path, manifest)
    artifact, path = open_artifact(out / VARIANT.name / manifest.name)
    model = onnx.load(path)
    change("fusion8.project_f1", np.zeros_like, "bias")(model)
    path.write_bytes(model.SerializeToString())
    signed = artifact.model_copy(update={"sha256": hash_path(path), "size_bytes": size_bytes(path)})
    write_manifest(path, signed)

    pairs = compare_stages(VARIANT, WEIGHTS, "onnx", FP32, samples=samples, out_dir=out)
    assert [(p.before, p.after) for p in pairs] == [
        ("torch", "torch, BatchNorm folded"),
        ("torch, BatchNorm folded", "ONNX as exported"),
        ("ONNX as exported", "ONNX simplified"),
    ]
    assert [p.largest for p in pairs] == [False, False, True]
    assert pairs[2].share > 0.999 and sum(p.share for p in pairs) == pytest.approx(1.0)
    assert all(o.max_abs < 1e-4 for o in pairs[0].outputs), "folded weights are rounded to float32"
    for clean in pairs[:2]:
        assert all(o.max_abs < 1e-3 for o in clean.outputs) and clean.mask_iou == 1.0
    assert describe_stages(pairs).splitlines()[2].startswith("►")
    assert sorted(p.name for p in out.iterdir()) == [VARIANT.name], "temporary files were left"
    write_fact(tmp_path / "pair.json", pairs[2])
    assert read_fact(tmp_path / "pair.json", StagePair) == pairs[2]


def test_coreml_separates_conversion_from_precision(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    built = [build_artifact(VARIANT.name, "coreml", recipe) for recipe in ("fp32", "fp16")]
    pairs = compare_stages(VARIANT, WEIGHTS, "coreml", FP16, samples=samples, out_dir=ship(tmp_path, *built))
    assert [p.after for p in pairs] == ["torch, BatchNorm folded", "MIL fp32", "MIL fp16"]
    assert max(o.max_abs for o in pairs[1].outputs) <= 1e-4
    assert pairs[2].largest and max(o.max_abs for o in pairs[2].outputs) > 1e-3


@skip_without_browser
@pytest.mark.browser
@pytest.mark.slow
def test_tfjs_walks_every_step_of_its_conversion(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    out = ship(tmp_path, build_artifact(VARIANT.name, "onnx"))
    pairs = compare_stages(VARIANT, WEIGHTS, "tfjs", FP16, samples=samples, out_dir=out)
    assert [p.after for p in pairs] == [
        "torch, BatchNorm folded",
        "ONNX as exported",
        "ONNX simplified",
        "TF frozen graph",
        "TF.js as converted",
        "dilations folded",
        "convolutions fused",
        "TF.js fp16",
    ]
    assert pairs[-1].largest and pairs[-1].share > 0.99  # float16 weights, and nothing else, change numbers
    for pair in pairs[:-1]:
        assert all(o.max_abs < 1e-3 for o in pair.outputs), pair.after


def test_unknown_chains_and_empty_sets_are_refused(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean tfjs"):
        compare_stages(VARIANT, WEIGHTS, "tfj", FP32, samples=samples, out_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="No photographs"):
        compare_stages(VARIANT, WEIGHTS, "onnx", FP32, samples=(), out_dir=tmp_path)
