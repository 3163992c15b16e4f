"""The page's own pre- and post-processing in real browsers: kinds of files, and mistakes planted in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.prepost import check_implementations
from benchmark.prepost.check import Reference
from benchmark.prepost.implementations import (
    BROWSERS,
    Implementation,
    PageSteps,
    decode_file,
    open_browser,
)
from deploy import chromium
from deploy.web_server import BUNDLE_DIR
from model_zoo import find_variant, weights_path
from nailcore.data.folder import Sample
from nailcore.errors import MissingToolError
from nailcore.facts import ImageSet, StageParity
from nailcore.preprocess import letterbox
from nailcore.tryon import find_nails
from tests.benchmark.photo_files import (
    add_orientation,
    encode,
    encode_cmyk,
    encode_jpeg,
    make_photo,
    make_sample,
    turn_back,
)
from tests.browser_marks import skip_without_browser

pytestmark = pytest.mark.browser
VARIANT = find_variant("nail43-288")
IMAGES = ImageSet(name="made photos", sha256="0" * 64, count=1, synthetic=True)
PHOTO = make_photo()
RAMP = np.tile(np.linspace(0, 255, PHOTO.shape[1]).astype(np.uint8), (PHOTO.shape[0], 1))
FINE = np.random.default_rng(0).integers(0, 256, PHOTO.shape)

# name -> (file, what a decoder may differ by in code values, and why)
FILES: dict[str, tuple[bytes, int, str]] = {
    **{
        f"EXIF {o}": (add_orientation(encode_jpeg(turn_back(PHOTO, o)), o), 2, "JPEG rounding")
        for o in range(1, 9)
    },
    "4:2:0": (encode_jpeg(make_photo(151, 211), subsampled=True), 12, "chroma may be interpolated otherwise"),
    "alpha": (encode(".png", np.dstack([PHOTO, RAMP])), 0, ""),
    "16 bit": (
        encode(".png", np.minimum(PHOTO.astype(np.uint16) * 256 + FINE, 65535).astype(np.uint16)),
        1,
        "Firefox rounds the lower byte, the others and OpenCV cut it off",
    ),
    "grey": (encode(".png", PHOTO[..., 0]), 0, ""),
    "grey JPEG": (encode(".jpg", PHOTO[..., 0]), 2, "JPEG rounding"),
    "CMYK": (encode_cmyk(PHOTO), 2, "OpenCV cuts the product of ink and key off, browsers round it"),
}


@pytest.fixture(scope="module", params=BROWSERS)
def browser(request: pytest.FixtureRequest) -> Iterator[list[Implementation]]:
    try:
        with open_browser(request.param) as implementations:
            yield implementations
    except MissingToolError as error:
        pytest.skip(str(error).replace("\n", " "))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    folder = tmp_path_factory.mktemp("photos")
    photo = add_orientation(encode_jpeg(turn_back(make_photo(400, 300, seed=4), 6)), 6)
    return {"photo": make_sample(folder, "photo", photo)}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(VARIANT, weights_path(VARIANT))


def test_every_kind_of_file_is_decoded_as_python_does(browser: list[Implementation]) -> None:
    decode = browser[0].decode
    assert decode is not None
    worst = {}
    for name, (file, _, _) in FILES.items():
        expected, found = decode_file(file), decode(file)
        assert found.shape == expected.shape, name
        worst[name] = int(np.abs(found.astype(int) - expected).max())
    allowed = {name: limit for name, (_, limit, _) in FILES.items()}
    if browser[0].engine == "firefox" and worst["alpha"] > 0:
        allowed["alpha"] = 255  # without a display server Firefox has no WebGL, which reads under alpha
    assert {name: value for name, value in worst.items() if value > allowed[name]} == {}


def test_the_page_agrees_in_every_stage(
    browser: list[Implementation], samples: dict[str, Sample], reference: Reference
) -> None:
    facts = check_implementations(browser, samples.values(), reference, IMAGES)
    ours = [f for f in facts if f.judged]
    assert [f.stage for f in ours] == ["decode", "resize", "normalise", "preprocess", "postprocess"]
    assert [f.detail for f in ours if not f.passed] == []
    assert all(f.source_sha256 and f.versions for f in ours)
    canvas = [f for f in facts if not f.judged]
    assert len(canvas) == 2 and all(f.figures["mean_abs_code_values"] > 0 for f in canvas)


# -- mistakes planted in the page's sources -----------------------------------------------------------
PLANTED = {
    "reversed": ("preprocess.js", "row[3 * x] = red;", "row[3 * x] = blue;", "resize", ""),
    "one pixel": (
        "preprocess.js",
        "(box.top + y) * inputWidth + box.left)",
        "(box.top + y) * inputWidth + box.left + 1)",
        "resize",
        "shifted by one pixel right",
    ),
    "squashed": (
        "preprocess.js",
        "const fit = (side, limit) => Math.max(1, Math.min(limit, roundHalfEven(side * scale)));",
        "const fit = (side, limit) => limit;",
        "resize",
        "squashed to the input's size instead of letterboxed",
    ),
    "flipped": (
        "preprocess.js",
        "imageOrientation: 'from-image'",
        "imageOrientation: 'flipY'",
        "decode",
        "upside down",
    ),
    "divided": (
        "preprocess.js",
        "Float32Array.from(rgb);",
        "Float32Array.from(rgb, (v) => v / 255);",
        "normalise",
        "divided by 255",
    ),
    "overflow": (
        "preprocess.js",
        "Math.min(255, total[at])",
        "total[at] + 60",
        "resize",
        "values wrap around at 256",
    ),
    "swapped axes": (
        "postprocess.js",
        "const [dx, dy] = [direction[at], direction[at + two.perChannel]];",
        "const [dy, dx] = [direction[at], direction[at + two.perChannel]];",
        "postprocess",
        "direction's x and y swapped",
    ),
    "threshold": (
        "postprocess.js",
        "fgbg[at + two.perChannel] > fgbg[at] ? 1 : 0",
        "fgbg[at + two.perChannel] > 0 ? 1 : 0",
        "postprocess",
        "mask by a threshold on the nail's logit instead of the argmax",
    ),
    "four neighbours": (
        "postprocess.js",
        "if (!above && aboveRight) {",
        "if (false) {",
        "postprocess",
        "",
    ),
}


class RandomLogits(Reference):
    """Masks with every kind of corner, whatever the photo."""

    def infer(self, image: Any) -> dict[str, Any]:
        rng = np.random.default_rng(5)
        return {
            name: rng.normal(size=(1, channels, 72, 72)).astype(np.float32)
            for name, channels in (("fgbg", 2), ("finger", 10), ("direction", 2))
        }


@pytest.fixture(scope="module")
def session() -> Iterator[chromium.ChromiumSession]:
    session = chromium.borrow_session()
    yield session
    chromium.return_session(session)


@skip_without_browser
def test_any_size_is_letterboxed_as_python_does(session: chromium.ChromiumSession) -> None:
    rng = np.random.default_rng(1)
    page = session.open_page()
    try:
        resize = PageSteps(session, page).resize
        for size in ((1, 1), (7, 300), (97, 33), (96, 96), (192, 192), (333, 200), (20, 31)):
            photo = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            difference = np.abs(resize(photo, 96, 96).astype(int) - letterbox(photo, 96, 96))
            assert difference.max() <= 1, size
    finally:
        session.close_page(page)


def make_nails(count: int, seed: int) -> dict[str, Any]:
    """Logits of ``count`` square nails, each in doubt between a few fingers."""
    rng = np.random.default_rng(seed)
    fgbg = np.zeros((1, 2, 32, 32), np.float32)
    finger = np.zeros((1, 10, 32, 32), np.float32)
    for k in range(count):
        rows, columns = slice(8 * (k // 4) + 1, 8 * (k // 4) + 6), slice(8 * (k % 4) + 1, 8 * (k % 4) + 6)
        fgbg[0, 1, rows, columns] = 4
        finger[0, :, rows, columns] = 2 * rng.normal(size=(10, 1, 1))
    direction = rng.normal(size=(1, 2, 32, 32)).astype(np.float32)
    return {"fgbg": fgbg, "finger": finger, "direction": direction}


@skip_without_browser
def test_fingers_are_named_together_as_python_does(session: chromium.ChromiumSession) -> None:
    page = session.open_page()
    try:
        find = PageSteps(session, page).find_nails
        together = 0
        for count in (1, 2, 4, 5, 6, 10, 12, 16):
            for seed in range(4):
                logits = make_nails(count, seed)
                ours = find_nails(*(logits[n][0] for n in ("fgbg", "finger", "direction")), min_area_px=1)
                assert [n.finger for n in find(logits, 1)] == [n.finger for n in ours]
                together += any(n.finger != int(np.argmax(n.finger_chances)) for n in ours)
        assert together > 8  # naming each nail by itself would not have passed
    finally:
        session.close_page(page)


def plant(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of the page's sources with one mistake."""
    shutil.copytree(BUNDLE_DIR.parent / "src", folder)
    text = (folder / file).read_text("utf-8")
    assert text.count(right) == 1, f"{file} has changed: plant the mistake anew"
    (folder / file).write_text(text.replace(right, wrong), "utf-8")
    return folder


def check_planted(
    session: chromium.ChromiumSession, folder: Path, sample: Sample, reference: Reference
) -> dict[str, StageParity]:
    page = session.open_page()
    try:
        page.evaluate(
            """async (url) => {
              const stages = await import(url);
              nailtool.preprocess = stages.runPreprocessing;
              nailtool.postprocess = stages.runPostprocessing;
            }""",
            f"{session.serve(folder)}/stages.js",
        )
        ours = PageSteps(session, page).describe("chromium")
        facts = check_implementations([ours], [sample], reference, IMAGES)
        return {fact.stage: fact for fact in facts}
    finally:
        session.close_page(page)


@skip_without_browser
@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_in_the_page_is_caught_where_it_is(
    mistake: str, session: chromium.ChromiumSession, samples: dict[str, Sample], tmp_path: Path
) -> None:
    file, right, wrong, stage, cause = PLANTED[mistake]
    folder = plant(tmp_path / "src", file, right, wrong)
    reference = RandomLogits(VARIANT, weights_path(VARIANT))
    facts = check_planted(session, folder, samples["photo"], reference)
    assert not facts[stage].passed and cause in facts[stage].cause
    # Nothing but the planted step and the whole it is part of is blamed; the mask goes back the same way.
    allowed = {stage, "preprocess"} | ({"postprocess"} if mistake == "squashed" else set())
    assert {s for s, f in facts.items() if not f.passed} <= allowed
