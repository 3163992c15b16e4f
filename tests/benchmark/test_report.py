"""The report shows what speaks of the files there now, names all else, and needs nothing from outside."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.report import ReportInput, collect_facts, render_report, write_report
from benchmark.report.plot import find_ticks, make_scale
from nailcore.errors import ArtifactError
from nailcore.facts import ImageSet
from tests.benchmark.report_facts import fact_path, make_context, sha, write_out_tree

PAIR = ("nail55-480", "nail43-480")
VOID = {"meta", "br", "img", "hr", "link", "input"}
STYLE = Path(__file__).parents[2] / "benchmark/report/style.css"


class Page(HTMLParser):
    """A parsed report: elements with attributes, visible text, and every tag that does not close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.feed(html)
        self.close()
        self.unclosed += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """Visible text with single spaces."""
        return " ".join(" ".join(self.words).split())

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Attributes of the elements of one tag that carry the given values."""
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


def change(path: Path, **values: Any) -> None:
    """Overwrite fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_artifact(root: Path, variant: str, file: str) -> None:
    """As if the file had been built again with other bytes."""
    change(root / variant / f"{file}.manifest.json", sha256=sha("other bytes"))


def build(root: Path, **options: Any) -> tuple[ReportInput, Page]:
    """Collect and render a folder."""
    report = collect_facts(root, make_context(**options))
    return report, Page(render_report(report))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Facts of two variants, on synthetic images."""
    write_out_tree(tmp_path, names=PAIR)
    return tmp_path


def test_sound_folder_is_reported_completely(tmp_path: Path) -> None:
    images = write_out_tree(tmp_path, synthetic=False)
    report, page = build(tmp_path, images=images)
    assert (len(report.artifacts), len(report.parity), len(report.latency)) == (30, 30, 18)
    assert not report.stale and not report.damaged
    assert "All 18 executed files compute what the trained network computes, within the limits." in page.text
    assert "12 files were not executed here." in page.text
    for artifact in report.artifacts:
        assert artifact.sha256 in page.text
    for section in ("verdict", "trade-off", "variants", "files", "parity", "photos", "latency", "gaps"):
        assert page.find("section", id=section), section


@pytest.mark.parametrize("synthetic", [True, False])
def test_html_is_well_formed_accessible_and_needs_nothing_else(tmp_path: Path, synthetic: bool) -> None:
    write_out_tree(tmp_path, names=PAIR, synthetic=synthetic)
    html = render_report(collect_facts(tmp_path, make_context()))
    page = Page(html)
    assert page.unclosed == []
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, count in ids.items() if count > 1] == []
    for tag, attributes in page.elements:
        for name in ("href", "src", "action", "data", "xlink:href", "srcset", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:60])
        assert attributes.get("href", "#")[1:] in {"", *ids}, "a link to a section that is not there"
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "@import" not in html and "url(" not in html
    assert len(page.find("table")) == len(page.find("caption")) > 3
    assert all(a.get("scope") for a in page.find("th"))
    assert page.find("img") and all(a.get("alt") for a in page.find("img"))
    assert str(tmp_path) not in html


def test_equal_facts_give_equal_text(root: Path) -> None:
    first, second = (render_report(collect_facts(root, make_context())) for _ in range(2))
    assert first == second


def test_synthetic_figures_never_stand_alone(root: Path) -> None:
    _, page = build(root)
    assert page.find("aside", **{"aria-label": "Warning: synthetic images"})
    assert "says nothing about accuracy on real nails" in page.text
    assert "Runtime against mIoU on synthetic images" in page.text
    assert page.text.count("mIoU on synthetic images against median wall time") == 2  # two plots
    for miou in re.finditer(r"(\S+ )?mIoU( \d| on| \()", page.text):
        assert "ynthetic" in miou.group() or page.text[miou.end() :].startswith(" synthetic"), miou.group()


def test_photographs_carry_no_synthetic_warning(tmp_path: Path) -> None:
    write_out_tree(tmp_path, names=PAIR, synthetic=False)
    _, page = build(tmp_path)
    assert "ynthetic" not in page.text
    assert "Photographs with overlays" in page.text


def test_published_figure_is_a_labelled_reference_only(root: Path) -> None:
    html = render_report(collect_facts(root, make_context()))
    assert html.count("94.5 mIoU") == 1
    assert re.search(r"not comparable and not drawn:</strong> 94\.5 mIoU, 29\.8 ms, iPad Pro \(paper", html)


def test_facts_of_a_replaced_file_are_stale_and_not_shown(root: Path) -> None:
    for what in ("parity", "latency/cpu"):
        path = fact_path(root, what, "nail55-480", "onnx", "fp32")
        change(path, **({"mask_iou": 0.123} if what == "parity" else {"median_wall_ms": 4321.0}))
    _, before = build(root)
    assert "0.123" in before.text and "4321" in before.text
    replace_artifact(root, "nail55-480", "nail55-480.fp32.onnx")
    report, page = build(root)
    assert "0.123" not in page.text and "4321" not in page.text
    stale = {item.file for item in report.stale}
    assert {
        "facts/parity/nail55-480.onnx.fp32.onnxruntime.json",
        "facts/latency/cpu/nail55-480.onnx.fp32.json",
    } <= stale
    assert "measured on another file" in page.text
    assert "Parity of nail55-480 onnx fp32" in page.text  # and it is missed below


def test_file_made_from_a_replaced_parent_has_no_accuracy(root: Path) -> None:
    replace_artifact(root, "nail55-480", "nail55-480.fp32.onnx")
    report, page = build(root)
    assert "File nail55-480 tfjs fp16" in {item.what for item in report.stale}
    assert "nail55-480 tfjs fp16: no accuracy is known for the weights it was made from" in page.text
    drawn = [a["aria-label"] for a in page.find("g") if "aria-label" in a]
    assert drawn and not any(label.startswith("nail55-480 tfjs") for label in drawn)


def test_accuracy_of_other_weights_or_images_is_set_aside(root: Path) -> None:
    facts = root / "facts/accuracy"
    change(
        facts / "nail55-480.json",
        weights_sha256=sha("retrained"),
        miou={"value": 0.11111, "low": 0, "high": 1},
    )
    report, page = build(root)
    assert [item.what for item in report.stale] == ["Accuracy of nail55-480"]
    assert "measured on other weights" in page.text and "0.111" not in page.text
    other = ImageSet(name="other photographs", sha256=sha("other"), count=3, synthetic=False)
    report, page = build(root, images=other)
    assert report.accuracy == () and report.overlays == ()
    assert "measured on other images: embedded synthetic hands" in page.text
    assert "Accuracy of nail55-480 and nail43-480" in page.text  # listed as not measured


def test_failed_parity_is_named_and_never_drawn(root: Path) -> None:
    sentence = "nail43-480 tfjs fp16: output 'fgbg' flips 7.5 ‰ of the mask pixels (limit 1 ‰)."
    path = fact_path(root, "parity", "nail43-480", "tfjs", "fp16")
    change(path, status="failed", failures=[sentence], flipped_permille=7.5)
    _, page = build(root)
    assert "Do not ship nail43-480 tfjs fp16" in page.text
    assert "1 failed" in page.text and "5 parity passed" in page.text
    assert page.text.count("output 'fgbg' flips 7.5 ‰") == 1
    assert "nail43-480 tfjs fp16: the file failed parity" in page.text
    assert not any(a.get("aria-label", "").startswith("nail43-480 tfjs fp16") for a in page.find("g"))


def test_failed_structural_check_counts_even_where_the_status_is_silent(root: Path) -> None:
    path = fact_path(root, "parity", "nail43-480", "coreml", "fp16")
    change(path, checks=[{"name": "channel order", "passed": False, "detail": "BGR, expected RGB"}])
    _, page = build(root)
    assert "Do not ship nail43-480 coreml fp16" in page.text
    assert "Structural check 'channel order' failed: BGR, expected RGB" in page.text


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"invalid": ["drift of 40 %"]}, "drift of 40 %"), ({"software_gpu": True}, "software-rendered GPU")],
)
def test_invalid_and_software_gpu_rows_are_flagged_not_ranked(
    root: Path, values: dict[str, Any], reason: str
) -> None:
    path = fact_path(root, "latency/chromium", "nail43-480", "tfjs", "fp32")
    change(path, median_wall_ms=0.5, median_cpu_ms=0.5, **values)
    _, page = build(root)
    assert "Fastest: nail43-480 tfjs fp16" in page.text
    assert f"not ranked: {reason}" in page.text.replace("a software", "software")
    assert page.find("tr", **{"class": "unranked"})
    assert not any(a.get("aria-label", "").startswith("nail43-480 tfjs fp32") for a in page.find("g"))


def test_hints_follow_from_the_drawn_rows(root: Path) -> None:
    path = fact_path(root, "latency/cpu", "nail43-480", "onnx", "fp32")
    _, page = build(root)
    assert "is slower here" not in page.text
    change(path, median_wall_ms=900.0, median_cpu_ms=900.0)
    _, page = build(root)
    assert "nail43-480 is slower here, on both clocks, than nail55-480" in page.text


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("facts/parity/nail55-480.tfjs.fp16.chromium-wasm.json", b'{"artifact": '),
        ("facts/latency/chromium/nail55-480.tfjs.fp16.json", b"\xff\xfe\x00"),
        ("facts/latency/cpu/nail55-480.onnx.fp32.json", b""),
        ("facts/accuracy/nail43-480.json", b'{"variant": "nail43-480", "miou": 0.99}'),
        ("facts/skipped/chromium-threads.json", b"[]"),
        ("nail55-480/nail55-480.fp16.tfjs.manifest.json", b"{}"),
        ("facts/accuracy/nail55-480/hand-03.jpg", b"no image"),
        ("facts/accuracy/nail55-480/hand-03.jpg", b""),
    ],
)
def test_damaged_file_is_named_and_not_used(root: Path, file: str, data: bytes) -> None:
    (root / file).write_bytes(data)
    report, page = build(root)
    assert [item.file for item in report.damaged] == [file]
    assert "1 file is damaged or missing and not used." in page.text
    assert f"Damaged or missing files {file} :" in page.text
    assert page.find("div", **{"class": "verdict bad"})


def test_missing_artifact_is_named(root: Path) -> None:
    (root / "nail55-480/nail55-480.fp16.tfjs").unlink()
    report, page = build(root)
    assert report.damaged[0].problem == "describes nail55-480.fp16.tfjs, which is not there"
    assert len(report.artifacts) == 9
    assert "not among the files here any more" in page.text


def test_overlay_outside_the_folder_is_refused(root: Path) -> None:
    secret = root / "secret.jpg"
    secret.write_bytes((root / "facts/accuracy/nail55-480/hand-00.jpg").read_bytes())
    path = root / "facts/accuracy/nail55-480.json"
    images = json.loads(path.read_text())["per_image"]
    images[0]["overlay"] = "../../../secret.jpg"
    change(path, per_image=images)
    report, _ = build(root)
    assert len(report.overlays) == 19
    assert "not a bare file name" in report.damaged[0].problem


def test_hostile_text_stays_text(root: Path) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style>&lt;"
    change(root / "facts/skipped/chromium-threads.json", what=evil, reason=evil, remedy=evil)
    change(
        fact_path(root, "parity", "nail55-480", "onnx", "fp32"),
        status="failed",
        failures=[evil],
        runtime=evil,
    )
    settings = {evil: evil}
    change(fact_path(root, "latency/cpu", "nail55-480", "onnx", "fp32"), settings=settings, invalid=[evil])
    path = root / "facts/accuracy/nail55-480.json"
    images = json.loads(path.read_text())["per_image"]
    images[0]["name"] = evil
    change(path, per_image=images)
    context = make_context().model_copy(update={"command": evil, "data": evil, "tool_version": evil})
    page = Page(render_report(collect_facts(root, context)))
    assert page.unclosed == []
    assert not page.find("script") and not page.find("img", src="x")
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 8


def test_what_was_not_measured_is_listed_with_a_remedy(root: Path) -> None:
    for path in (root / "facts/latency/chromium").glob("*.json"):
        path.unlink()
    fact_path(root, "latency/cpu", "nail43-480", "onnx", "fp32").unlink()
    _, page = build(root)
    gaps = page.text[page.text.index("What this report does not know") :]
    for words in (
        "Chromium with two threads The server was not isolated. Serve with COOP and COEP headers.",
        "4 coreml files in mil-reference Core ML executes on Apple systems only.",
        "Latency of 4 tfjs files No current latency belongs to them. "
        "Run nailtool benchmark --device chromium .",
        "Latency on cpu of nail43-480 onnx fp32",
        "Latency of 4 coreml files",
        "iPhone and iPad",
        "WebGL and WebGPU",
        "Firefox",
        "WebKit",
    ):
        assert words in gaps, words


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    _, page = build(tmp_path)
    assert page.unclosed == []
    assert "nothing to judge" in page.text
    with pytest.raises(ArtifactError, match="no such folder"):
        collect_facts(tmp_path / "none", make_context())


def test_photographs_are_worst_first_and_shrunk_to_keep_the_file_small(tmp_path: Path) -> None:
    import cv2

    write_out_tree(tmp_path, names=PAIR)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (480, 640, 3), np.uint8)  # the worst a JPEG can meet
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    for path in (tmp_path / "facts/accuracy").glob("*/*.jpg"):
        path.write_bytes(data)
    report = collect_facts(tmp_path, make_context())
    html = render_report(report)
    write_report(tmp_path / "report.html", html)
    assert (tmp_path / "report.html").stat().st_size < 6_000_000
    assert len(report.overlays) == 20
    assert {max(o.width_px, o.height_px) for o in report.overlays} == {512}
    for name in PAIR:
        ious = [o.nail_iou or 0.0 for o in report.overlays if o.variant == name]
        assert ious == sorted(ious) and len(ious) == 10


@given(st.floats(0, 1e4), st.floats(1e-3, 1e4), st.integers(4, 9))
def test_axis_covers_its_data_with_few_round_ticks(low: float, span: float, most: int) -> None:
    ticks = find_ticks(low, low + span, most)
    tolerance = 1e-6 * (low + span)
    assert ticks[0] <= low + tolerance and ticks[-1] >= low + span - tolerance
    assert 2 <= len(ticks) <= most + 1
    scale = make_scale(low, low + span, 10.0, 500.0, most)
    places = [scale.place(low + span * share) for share in (-0.5, 0, 0.3, 0.9, 1, 7)]
    assert places == sorted(places) and places[0] >= 10 and places[-1] <= 500
    assert len({text for _, text in scale.ticks}) == len(scale.ticks)


def test_labels_cover_neither_each_other_nor_a_marker(tmp_path: Path) -> None:
    write_out_tree(tmp_path)
    html = render_report(collect_facts(tmp_path, make_context()))
    for svg in re.findall(r'<svg class="plot".*?</svg>', html, re.S):
        found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">(\d+ px)</text>', svg)
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}
        boxes = [(float(x) - shift[a] * 42, float(y) - 12) for x, y, a, _ in found]
        assert sorted(text for *_, text in found) == sorted(["288 px", "352 px", "480 px"] * 2)
        for i, (x, y) in enumerate(boxes):
            for u, v in boxes[:i]:
                assert abs(x - u) >= 42 or abs(y - v) >= 12
        for cx, cy in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg):
            assert not any(x < float(cx) < x + 42 and y < float(cy) < y + 12 for x, y in boxes)


def test_colours_have_contrast_in_light_and_dark() -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    assert len(blocks) == 3  # light, dark on screen, paper
    for block in (blocks[0], blocks[1], blocks[0] + blocks[2]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("bg", "surface")]
        pairs += [(tone, ground) for tone in ("good", "bad", "warn") for ground in ("surface", f"{tone}-bg")]
        pairs += [("s55", "surface"), ("s43", "surface"), ("muted", "bad-bg"), ("ink", "plain-bg")]
        for ink, ground in pairs:
            light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def _luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
