"""What the report says of parity: engines apart, gates and stages with figures, heat-maps, nothing stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark.report.tables import group_engines, join_variants
from nailcore.facts import ParityResult
from tests.benchmark.parity_facts import write_rich_tree
from tests.benchmark.report_facts import fact_path, sha
from tests.benchmark.test_report import build, change

NAMES = ("nail55-480", "nail43-480")
FIRST = NAMES[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rich_tree(tmp_path, names=NAMES)
    return tmp_path


def test_everything_that_is_known_is_shown_and_nothing_is_stale(root: Path) -> None:
    report, page = build(root)
    assert not report.stale and not report.damaged and page.unclosed == []
    groups = {group.engine: group for group in group_engines(join_variants(report))}
    assert list(groups)[:2] == ["onnxruntime", "chromium-wasm"] and list(groups)[-1] == "mil-reference"
    assert list(groups)[2:4] == ["chromium-webgl", "chromium-webgl-fp16"]
    assert [len(groups[name].rows) for name in ("onnxruntime", "chromium-wasm", "webkit-wasm")] == [2, 4, 2]
    for words in (
        "chromium-webgl GPU played by the processor tfjs webgl, Chromium · first 2 of 10, embedded",
        "mil-reference not Core ML MIL reference",
        "Core ML itself: not measured here",
        "2 files were executed by the MIL reference alone, not by Core ML.",
        "that head is untrained, so its figure is shown and not judged",
        "identity : The constant clip_7_beta is 1.0, the sibling's is 6.0. operations 212, weights 686",
        "torch's low.stage4.1.layers.3 (conv): dilation, confirmed by computing it again",
        "SavedModel TF.js, fp16",
        "no antialiasing: The browser skips pixels when it shrinks a photo.",
        "2 tfjs files in chromium-webgpu No WebGPU adapter here. Install a driver with Vulkan.",
        "What Core ML itself computes for 4 coreml files",
    ):
        assert words in page.text, words
    assert "Do not ship nail55-480 coreml fp16" in page.text
    assert (
        len(report.heatmaps) == 2
        and report.heatmaps[0].flipped_permille > report.heatmaps[1].flipped_permille
    )


def test_the_overview_holds_the_worst_of_each_engine(root: Path) -> None:
    change(fact_path(root, "parity", FIRST, "tfjs", "fp16"), mask_iou=0.91234, flipped_permille=0.777)
    report, page = build(root)
    group = next(g for g in group_engines(join_variants(report)) if g.engine == "chromium-wasm")
    assert group.find_worst("mask_iou", lowest=True) == 0.91234
    assert group.find_worst("flipped_permille") == 0.777
    assert group.find_worst("finger_agreement", lowest=True) == min(
        p.finger_agreement for _, p in group.rows if p.finger_agreement is not None
    )
    assert group.find_max_abs("fp16") == max(
        o.max_abs for f, p in group.rows if f.artifact.recipe == "fp16" for o in p.outputs
    )
    assert group.find_max_abs("no such recipe") is None
    assert page.text.count("0.9123") == 2  # in the overview, and in its own row


def test_engines_that_differ_alike_share_one_heatmap(root: Path) -> None:
    path = fact_path(root, "parity", FIRST, "tfjs", "fp16")
    twin = path.with_name(path.name.replace("chromium-wasm", "firefox-wasm"))
    assert twin != path
    before = build(root)[0].heatmaps
    twin.write_text(path.read_text().replace('"chromium-wasm"', '"firefox-wasm"'))
    shutil.copytree(path.with_suffix(""), twin.with_suffix(""))
    after = build(root)[0].heatmaps
    assert {h.engine for h in after if "firefox-wasm" in h.engine} == {"chromium-wasm, firefox-wasm"}
    assert len(after) == len(before)


def test_an_untrained_head_is_bracketed_and_a_trained_one_is_not(root: Path) -> None:
    path = fact_path(root, "parity", FIRST, "tfjs", "fp16")
    _, page = build(root)
    before = len(page.find("span", **{"class": "unjudged"}))
    change(path, heads_trained=["fgbg", "finger", "direction"])
    _, page = build(root)
    assert len(page.find("span", **{"class": "unjudged"})) == before - 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"weights_sha256": sha("other weights")}, "measured on other weights"),
        ({"engine": ""}, "does not say which engine"),
        ({"images": {"name": "x", "sha256": sha("x"), "count": 1, "synthetic": True}}, "other images: x"),
        (
            {
                "images": {
                    "name": "x",
                    "sha256": sha("x"),
                    "part_of_sha256": sha("y"),
                    "count": 1,
                    "synthetic": True,
                }
            },
            "other images: x",
        ),
    ],
)
def test_a_verdict_on_something_else_is_never_shown(
    root: Path, values: dict[str, object], reason: str
) -> None:
    path = fact_path(root, "parity", FIRST, "tfjs", "fp16")
    change(path, mask_iou=0.77777)
    assert "0.7778" in build(root)[1].text
    change(path, **values)
    report, page = build(root)
    assert "0.7778" not in page.text
    (stale,) = [item for item in report.stale if item.file == path.relative_to(root).as_posix()]
    assert reason in stale.reason and stale.what.startswith("Parity of nail55-480 tfjs fp16")
    assert all(heat.engine != "chromium-wasm" for heat in report.heatmaps)


def test_stages_and_divergences_of_another_file_are_stale_too(root: Path) -> None:
    manifest = next((root / FIRST).glob("*.fp16.tfjs.manifest.json"))
    change(manifest, sha256=sha("built again"))
    report, page = build(root)
    assert report.conversions == () and report.bisections == () and report.heatmaps == ()
    stale = {item.what.split(" of ")[0] for item in report.stale}
    assert {"Parity", "Conversion", "First divergence", "Latency"} <= stale
    assert "confirmed by computing it again" not in page.text


def test_a_failure_stands_whatever_it_was_compared_with(root: Path) -> None:
    path = fact_path(root, "parity", FIRST, "onnx", "fp32")
    sentence = "nail55-480 onnx fp32: was not built from the weights it is compared with."
    change(path, status="failed", failures=[sentence], weights_sha256=sha("other weights"))
    _, page = build(root)
    assert "nail55-480 onnx fp32 in onnxruntime: was not built from the weights" in page.text


def test_one_failing_engine_fails_the_file_and_is_named(root: Path) -> None:
    path = root / "facts/parity" / f"{FIRST}.tfjs.fp32.firefox-webgl.json"
    change(path, status="failed", failures=[f"{FIRST} tfjs fp32: output 'fgbg' flips 9 ‰."])
    _, page = build(root)
    assert "nail55-480 tfjs fp32 in firefox-webgl: output 'fgbg' flips 9 ‰." in page.text
    assert "nail55-480 tfjs fp32: the file failed parity" in page.text  # and its latency is not ranked


def test_a_failing_stage_of_ours_is_a_failure(root: Path) -> None:
    path = root / "facts/prepost" / f"{FIRST}.json"
    text = path.read_text().replace('"passed": true', '"passed": false', 1)
    path.write_text(text)
    _, page = build(root)
    assert "nail55-480 preprocess in chromium: nailtool JavaScript" in page.text
    assert page.find("div", **{"class": "verdict bad"})


@pytest.mark.parametrize("name", ["../nail55-480.tfjs.fp16.chromium-wasm.json", "gone.png", "broken.png"])
def test_an_unusable_heatmap_is_named_and_not_shown(root: Path, name: str) -> None:
    path = fact_path(root, "parity", FIRST, "tfjs", "fp16")
    (path.with_suffix("") / "broken.png").write_bytes(b"no image")
    fact = ParityResult.model_validate_json(path.read_bytes())
    worst = [fact.worst_images[0].model_dump() | {"heatmap": name}]
    change(path, worst_images=worst)
    report, _ = build(root)
    assert report.heatmaps == () and len(report.damaged) == 1
