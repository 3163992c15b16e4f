"""Planted mistakes before and after the network: each is caught, and those in the image are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from benchmark.prepost import causes, check_implementations, nails
from benchmark.prepost.check import Reference, check_engine
from benchmark.prepost.implementations import Implementation, decode_file, python_steps, read_alpha
from benchmark.prepost.totals import stage_limits
from deploy import browser, chromium
from model_zoo import find_variant, weights_path
from nailcore.data.folder import Sample
from nailcore.errors import ArtifactError, DataError, MissingToolError
from nailcore.facts import ImageSet, StageParity
from nailcore.preprocess import Letterbox, letterbox
from nailcore.runtime import Logits
from nailcore.tryon import Nail, find_nails
from tests.benchmark.photo_files import (
    add_orientation,
    encode,
    encode_jpeg,
    make_photo,
    make_sample,
    turn_back,
)

VARIANT = find_variant("nail43-288")
SIDE = VARIANT.height_px
PYTHON = python_steps()
IMAGES = ImageSet(name="made photos", sha256="0" * 64, count=1, synthetic=True)
RGB = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class WithoutNetwork(Reference):
    """Known logits instead of the network's: what is tested here is what lies around it."""

    def infer(self, image: npt.NDArray[np.generic]) -> Logits:
        rng = np.random.default_rng(5)
        coarse = rng.normal(size=(2, 12, 12)).repeat(6, axis=1).repeat(6, axis=2)
        return {
            "fgbg": (3 * coarse + rng.normal(size=(2, 72, 72)))[None].astype(np.float32),
            "finger": rng.normal(size=(1, 10, 72, 72)).astype(np.float32),
            "direction": rng.normal(loc=(0.5,), size=(1, 2, 72, 72)).astype(np.float32),
        }


@pytest.fixture(scope="module")
def reference() -> Reference:
    return WithoutNetwork(VARIANT, weights_path(VARIANT))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """One large photo that says how it is to be turned, a small one, and one with alpha."""
    folder = tmp_path_factory.mktemp("photos")
    large = make_photo(440, 330, seed=1)
    ramp = np.tile(np.linspace(40, 255, 320).astype(np.uint8), (400, 1))
    files = {
        "turned": add_orientation(encode_jpeg(turn_back(large, 6)), 6),
        "small": encode_jpeg(make_photo(150, 210, seed=2)),
        "alpha": encode(".png", np.dstack([make_photo(400, 320, seed=3), ramp])),
    }
    return {name: make_sample(folder, name, file) for name, file in files.items()}


def check(who: Implementation, sample: Sample, reference: Reference, *stages: str) -> list[StageParity]:
    return check_implementations([who], [sample], reference, IMAGES, stages)  # type: ignore[arg-type]


def test_python_agrees_with_itself_in_every_step(photos: dict[str, Sample], reference: Reference) -> None:
    facts = check_implementations([PYTHON], photos.values(), reference, IMAGES)
    assert [f.stage for f in facts] == ["decode", "resize", "normalise", "preprocess", "postprocess"]
    assert all(f.passed and not f.cause and f.worst_image is None for f in facts)
    assert all(f.figures.get("max_abs_code_values", 0) == 0 for f in facts)


# -- planted mistakes in pre-processing, each named --------------------------------------------------
Broken = Callable[[bytes], npt.NDArray[np.generic]]


def upright(file: bytes) -> F32:
    """What Python makes of a file."""
    return letterbox(decode_file(file), SIDE, SIDE).astype(np.float32)


def place(photo: RGB, resize: Callable[[RGB, tuple[int, int]], Any]) -> F32:
    """A letterbox written anew, with another way to resize."""
    box = Letterbox(*photo.shape[:2], SIDE, SIDE)  # type: ignore[call-arg]
    (h, w), (top, left) = box.scaled, box.origin
    canvas = np.full((SIDE, SIDE, 3), 128, np.float32)
    canvas[top : top + h, left : left + w] = np.clip(resize(photo, (w, h)), 0, 255)
    return canvas


def crop_one(file: bytes) -> F32:
    return letterbox(np.ascontiguousarray(decode_file(file)[1:, 1:]), SIDE, SIDE).astype(np.float32)


def shift_half(file: bytes) -> F32:
    image = upright(file)
    return (image + np.roll(image, 1, axis=1)) / 2


def linear(file: bytes) -> npt.NDArray[np.generic]:
    values = upright(file) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 255


def encode_twice(file: bytes) -> npt.NDArray[np.generic]:
    values = upright(file) / 255
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055) * 255


def brighten_in_uint8(file: bytes) -> npt.NDArray[np.generic]:
    return np.add(upright(file).astype(np.uint8), np.uint8(70))


def squash(file: bytes) -> npt.NDArray[np.generic]:
    return cv2.resize(decode_file(file), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def fill(file: bytes) -> npt.NDArray[np.generic]:
    photo = decode_file(file)
    height, width, _ = photo.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return squash(encode(".png", photo[top : top + side, left : left + side]))


def premultiply(file: bytes) -> npt.NDArray[np.generic]:
    alpha = read_alpha(file)
    assert alpha is not None
    shaded = np.rint(decode_file(file) * (alpha[..., None] / 255.0)).astype(np.uint8)
    return letterbox(shaded, SIDE, SIDE)


def pad_black(file: bytes) -> F32:
    image = upright(file)
    box = Letterbox(*decode_file(file).shape[:2], SIDE, SIDE)  # type: ignore[call-arg]
    top, left = box.origin
    image[:top] = image[SIDE - top :] = 0
    image[:, :left] = image[:, SIDE - left :] = 0
    return image


def in_linear_light(photo: RGB, size: tuple[int, int]) -> F32:
    small = cv2.resize((photo / 255.0) ** 2.2, size, interpolation=cv2.INTER_AREA)
    return np.asarray(255 * small ** (1 / 2.2), np.float32)


def video_matrix(file: bytes) -> npt.NDArray[np.generic]:
    """Y'CbCr made with one standard's matrix and read with the other's."""
    red, green, blue = np.moveaxis(upright(file), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - luma) / 1.772, (red - luma) / 1.402
    read = [luma + 1.5748 * cr, luma - 0.1873 * cb - 0.4681 * cr, luma + 1.8556 * cb]
    return np.asarray(np.clip(np.stack(read, axis=2), 0, 255))


IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
MISTAKES: dict[str, tuple[str, Broken, str]] = {
    "off-by-one crop": ("small", crop_one, "off by one"),
    "off-by-one crop, large": ("turned", crop_one, "off by one"),
    "half a pixel": ("turned", shift_half, "shifted by half a pixel right"),
    "one pixel": ("turned", lambda f: np.roll(upright(f), -1, axis=0), "shifted by one pixel up"),
    "three pixels": ("small", lambda f: np.roll(upright(f), 3, axis=1), "shifted by 3 pixels right"),
    "linear light": ("turned", linear, "linear light where sRGB is expected"),
    "sRGB twice": ("turned", encode_twice, "sRGB curve applied twice"),
    "uint8 overflow": ("turned", brighten_in_uint8, "wrap around at 256"),
    "int8": ("turned", lambda f: upright(f).astype(np.uint8).view(np.int8), "wrap around at 256"),
    "BGR": ("turned", lambda f: upright(f)[..., ::-1], "channels reversed (BGR"),
    "GBR": ("small", lambda f: upright(f)[..., [1, 2, 0]], "channels permuted (GBR"),
    "squashed": ("turned", squash, "squashed to the input's size"),
    "filled": ("turned", fill, "cropped to fill the input"),
    "EXIF ignored": (
        "turned",
        lambda f: letterbox(decode_file(f, upright=False), SIDE, SIDE),
        "EXIF orientation ignored",
    ),
    "mirrored": ("small", lambda f: upright(f)[:, ::-1], "mirrored left to right"),
    "0..1": ("turned", lambda f: upright(f) / 255, "divided by 255"),
    "-1..1": ("turned", lambda f: upright(f) / 127.5 - 1, "scaled to -1..1"),
    "ImageNet": (
        "turned",
        lambda f: (upright(f) / 255 - IMAGENET[0]) / IMAGENET[1],
        "ImageNet's mean and deviation",
    ),
    "mean subtracted": ("turned", lambda f: upright(f) - 127.5, "mean subtracted"),
    "video range": ("turned", lambda f: upright(f) * 219 / 255 + 16, "video range 16..235"),
    "contrast": ("turned", lambda f: upright(f) * 0.9 + 5, "values scaled by 0.9 and moved by +5"),
    "video matrix": ("turned", video_matrix, "BT.709 matrix on BT.601 video"),
    "alpha premultiplied": ("alpha", premultiply, "alpha multiplied into the colours"),
    "black padding": ("turned", pad_black, "padded with 0 instead of 128"),
    "top left": (
        "turned",
        lambda f: np.roll(upright(f), -int(Letterbox(440, 330, SIDE, SIDE).origin[1]), axis=1),
        "not centred",
    ),
    "aliased": (
        "turned",
        lambda f: place(decode_file(f), lambda p, s: cv2.resize(p, s, interpolation=cv2.INTER_LINEAR)),
        "aliasing",
    ),
    "nearest": (
        "turned",
        lambda f: place(decode_file(f), lambda p, s: cv2.resize(p, s, interpolation=cv2.INTER_NEAREST)),
        "nearest pixel",
    ),
    "linear average": (
        "turned",
        lambda f: place(decode_file(f), in_linear_light),
        "averaged in linear light",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught_and_named(
    mistake: str, photos: dict[str, Sample], reference: Reference
) -> None:
    photo, broken, name = MISTAKES[mistake]
    who = Implementation("broken", "test", run=lambda f, h, w: np.asarray(broken(f), np.float32))
    (fact,) = check(who, photos[photo], reference, "preprocess")
    assert fact.passed is False and fact.worst_image == photo
    assert name in fact.cause and name in fact.detail


def test_the_step_that_is_wrong_is_the_one_that_fails(
    photos: dict[str, Sample], reference: Reference
) -> None:
    """Each step is fed with Python's result of the one before, so a culprit does not spread."""
    samples = [photos["small"], photos["turned"]]
    reversed_decode = replace(PYTHON, decode=lambda f: decode_file(f)[..., ::-1])
    facts = {f.stage: f for f in check_implementations([reversed_decode], samples, reference, IMAGES)}
    assert facts["decode"].cause == "channels reversed (BGR instead of RGB)"
    assert all(f.passed for stage, f in facts.items() if stage != "decode")
    divided = replace(PYTHON, normalise=lambda rgb: rgb.astype(np.float32) / 255)
    facts = {f.stage: f for f in check_implementations([divided], samples, reference, IMAGES)}
    assert [stage for stage, f in facts.items() if not f.passed] == ["normalise"]
    assert "the graph normalises by itself" in facts["normalise"].detail
    sheared = replace(PYTHON, resize=lambda p, h, w: np.roll(letterbox(p, h, w), 1, axis=1))
    facts = {f.stage: f for f in check_implementations([sheared], samples, reference, IMAGES)}
    assert [stage for stage, f in facts.items() if not f.passed] == ["resize"]
    assert facts["resize"].cause == "shifted by one pixel right"


def test_an_ignored_rotation_is_seen_by_the_size_alone(
    photos: dict[str, Sample], reference: Reference
) -> None:
    who = Implementation("broken", "test", decode=lambda f: decode_file(f, upright=False))
    (fact,) = check(who, photos["turned"], reference, "decode")
    assert fact.passed is False and fact.cause == "EXIF orientation ignored"
    assert "became 440×330 px, not 330×440 px" in fact.detail


def test_nan_an_exception_and_an_unknown_mistake_are_failures_too(
    photos: dict[str, Sample], reference: Reference
) -> None:
    def explode(file: bytes, height: int, width: int) -> F32:
        raise ArtifactError("out of paper")

    nan = Implementation("broken", "test", run=lambda f, h, w: upright(f) * np.float32(np.nan))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.float32)
    found = [
        check(who, photos["small"], reference, "preprocess")[0]
        for who in (
            nan,
            Implementation("b", "t", run=explode),
            Implementation("b", "t", run=lambda f, h, w: noise),
        )
    ]
    assert [f.passed for f in found] == [False] * 3
    assert "NaN" in found[0].detail and "out of paper" in found[1].detail
    assert found[2].cause == "" and "No known mistake" in found[2].detail


def test_what_it_does_to_the_mask_is_told_by_the_network(photos: dict[str, Sample]) -> None:
    real = Reference(VARIANT, weights_path(VARIANT))
    who = replace(PYTHON, run=lambda f, h, w: upright(f)[..., ::-1])
    flipped = check(who, photos["turned"], real, "preprocess")[0].figures["flipped_permille"]
    assert flipped > 0
    assert check(PYTHON, photos["turned"], real, "preprocess")[0].figures["flipped_permille"] == 0


def test_no_cause_is_invented_for_what_agrees() -> None:
    photo = make_photo(100, 80)
    source = causes.Source(photo, (96, 96))
    image = letterbox(photo, 96, 96)
    assert causes.find_cause(image, image.astype(np.float32), source) == ""


# -- planted mistakes in post-processing -------------------------------------------------------------
def broken_nails(change: Callable[[dict[str, F32]], dict[str, F32]]) -> Callable[[Logits, int], list[Nail]]:
    def run(logits: Logits, min_area_px: int) -> list[Nail]:
        given = change({name: values[0] for name, values in logits.items()})
        return find_nails(given["fgbg"], given["finger"], given["direction"], min_area_px=min_area_px)

    return run


def softmax_over_rows(given: dict[str, F32]) -> dict[str, F32]:
    """Class probabilities normalised along the image's rows."""
    powers = np.exp(given["finger"])
    return given | {"finger": np.log(powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)}


def softmax_over_pixels(logits: Logits, min_area_px: int) -> list[Nail]:
    powers = np.exp(logits["finger"][0].astype(np.float64))
    shares = powers / powers.sum(axis=(1, 2), keepdims=True)
    found = []
    from nailcore.tryon import label_components, nail_mask

    labels = label_components(nail_mask(logits["fgbg"][0]))
    sizes = np.bincount(labels.ravel())
    kept = [label for label in range(1, len(sizes)) if sizes[label] >= min_area_px]
    for nail, label in zip(PYTHON.find_nails(logits, min_area_px), kept, strict=True):  # type: ignore[misc]
        votes = shares[:, labels == label].sum(axis=1)
        found.append(replace(nail, finger=int(votes.argmax())))
    return found


POST_MISTAKES: dict[str, tuple[Callable[[Logits, int], list[Nail]], str]] = {
    "direction's x and y": (
        broken_nails(lambda g: g | {"direction": g["direction"][::-1]}),
        "direction's x and y swapped",
    ),
    "y up": (
        broken_nails(lambda g: g | {"direction": g["direction"] * np.array([[[1]], [[-1]]], np.float32)}),
        "direction's y points up",
    ),
    "tip to base": (broken_nails(lambda g: g | {"direction": -g["direction"]}), "direction reversed"),
    "finger order": (broken_nails(lambda g: g | {"finger": g["finger"][::-1]}), "finger order reversed"),
    "hands": (
        broken_nails(lambda g: g | {"finger": g["finger"][[*range(5, 10), *range(5)]]}),
        "left and right hand swapped",
    ),
    "threshold": (
        broken_nails(lambda g: g | {"fgbg": np.stack([np.zeros_like(g["fgbg"][0]), g["fgbg"][1]])}),
        "nail's sigmoid instead of the softmax",
    ),
    "fgbg": (broken_nails(lambda g: g | {"fgbg": g["fgbg"][::-1]}), "nail and background swapped"),
    "softmax over pixels": (softmax_over_pixels, "softmax over the wrong axis"),
    "softmax over rows": (broken_nails(softmax_over_rows), ""),
    "all components": (
        lambda logits, area: PYTHON.find_nails(logits, 1),  # type: ignore[misc]
        "small components kept",
    ),
    "layout": (
        broken_nails(
            lambda g: {n: v.ravel().reshape(*v.shape[1:], len(v)).transpose(2, 0, 1) for n, v in g.items()}
        ),
        "layout mixed up",
    ),
    "transposed": (
        broken_nails(lambda g: {n: v.swapaxes(1, 2) for n, v in g.items()}),
        "rows and columns swapped",
    ),
}


@pytest.mark.parametrize("mistake", POST_MISTAKES)
def test_a_mistake_after_the_network_is_caught(
    mistake: str, photos: dict[str, Sample], reference: Reference
) -> None:
    broken, name = POST_MISTAKES[mistake]
    (fact,) = check(replace(PYTHON, find_nails=broken), photos["small"], reference, "postprocess")
    assert fact.passed is False
    assert name in fact.cause and bool(name) == bool(fact.cause)


def test_a_shifted_mask_on_the_photo_is_caught(photos: dict[str, Sample], reference: Reference) -> None:
    def shifted(logits: Logits, box: Letterbox) -> npt.NDArray[np.bool_]:
        assert PYTHON.find_mask is not None
        return np.roll(PYTHON.find_mask(logits, box), 1, axis=1)

    (fact,) = check(replace(PYTHON, find_mask=shifted), photos["small"], reference, "postprocess")
    assert fact.passed is False and fact.figures["flipped_permille"] > 1


def test_four_connected_components_are_caught() -> None:
    logits = WithoutNetwork(VARIANT, weights_path(VARIANT)).infer(np.zeros((SIDE, SIDE, 3)))
    nail = PYTHON.find_nails(logits, 1)[0]  # type: ignore[misc]
    torn = [replace(nail, area=nail.area - 1), replace(nail, area=1)]
    difference = nails.compare_nails([nail], torn)
    assert (difference.unmatched, difference.area) == (1, 1) and not difference.is_none
    lost_angle = nails.compare_nails([nail], [replace(nail, direction=None, base=None, tip=None)])
    assert lost_angle.angle_deg == nails.NO_ANGLE_DEG


# -- limits and the whole command's function ----------------------------------------------------------
@pytest.mark.parametrize(
    "stage", ["decode", "resize", "normalise", "preprocess", "image input", "postprocess"]
)
def test_every_stage_has_limits_with_a_reason(stage: Any) -> None:
    assert len(stage_limits(stage).reason) > 20


def test_a_missing_browser_is_not_measured_and_never_a_pass(
    photos: dict[str, Sample], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_none() -> Path:
        raise MissingToolError("No such browser.", hint="Install it.")

    monkeypatch.setattr(browser.POOL, "borrow", lambda key, start: start())
    monkeypatch.setattr(chromium, "find_browser", find_none)
    facts = check_engine("chromium", [photos["small"]], reference, IMAGES)
    assert [f.passed for f in facts] == [None] * 5
    assert all("No such browser" in f.detail and "Install it" in f.detail for f in facts)
    assert all(f.figures == {} for f in facts)


def test_an_empty_part_is_refused(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(DataError, match="no photographs"):
        check_implementations([PYTHON], [], reference, IMAGES)
