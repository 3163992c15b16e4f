"""Recorded iOS outputs and image inputs: read strictly, bound to their photo, wrong ones named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.prepost import check_ios_dumps, image_input, read_dump
from benchmark.prepost.check import Reference
from benchmark.prepost.ios_dump import DumpHeader, write_dump
from deploy.mil import Feature, ImageSpec
from model_zoo import find_variant, weights_path
from nailcore.data.folder import Sample
from nailcore.errors import ConversionError, DataError
from nailcore.facts import ImageSet
from nailcore.preprocess import PAD_VALUE, letterbox
from nailcore.storage import hash_file
from nailcore.tryon.direction import MIN_COHERENCE
from tests.benchmark.photo_files import encode_jpeg, make_photo, make_sample

VARIANT = find_variant("nail43-288")
SIDE = VARIANT.height_px
IMAGES = ImageSet(name="made photos", sha256="0" * 64, count=2, synthetic=True)
IOS = Path(image_input.__file__).parents[2] / "deploy" / "ios"
PHONE = {"device": "iPhone15,2", "system": "iOS 18.1"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("photos")
    return [make_sample(folder, name, encode_jpeg(make_photo(seed=n))) for n, name in enumerate("ab")]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(VARIANT, weights_path(VARIANT))


def dump(
    path: Path, sample: Sample, change: Callable[[Any], Any] = lambda image: image, **header: str
) -> Path:
    image = sample.load_image()
    pixels = letterbox(image, SIDE, SIDE) if header.get("stage", "preprocess") == "preprocess" else image
    given = {"stage": "preprocess", "photo_sha256": hash_file(sample.image), **PHONE, **header}
    write_dump(path, np.ascontiguousarray(change(pixels)), **given)
    return path


# -- the file ---------------------------------------------------------------------------------------
def test_a_dump_comes_back_as_it_was_written(tmp_path: Path, samples: list[Sample]) -> None:
    header, pixels = read_dump(dump(tmp_path / "a.rgb", samples[0]))
    assert (header.height_px, header.width_px, header.device) == (SIDE, SIDE, "iPhone15,2")
    assert np.array_equal(pixels, letterbox(samples[0].load_image(), SIDE, SIDE))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "header promises"),
        (lambda data: data + b"\0", "more than"),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "damaged"),
        (lambda data: data.replace(b'"height_px":288', b'"height_px":287'), "header promises"),
        (lambda data: data.replace(b'"height_px":288', b'"height_px":999999'), "height_px"),
        (lambda data: data.replace(b"nailtool-rgb", b"nailtool-rgx"), "format"),
        (lambda data: data.replace(b'"version":1', b'"version":2'), "version"),
        (lambda data: b"\x89PNG" + bytes(9000), "first line"),
        (lambda data: b"", "first line"),
        (lambda data: b"{}\n", "header"),
    ],
)
def test_a_damaged_dump_is_refused_with_its_reason(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path, samples: list[Sample]
) -> None:
    path = dump(tmp_path / "a.rgb", samples[0])
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    with pytest.raises(DataError, match=message):
        read_dump(path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), header=st.booleans())
def test_no_bytes_make_the_reader_crash(
    data: bytes, header: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.rgb"
    start = (
        b'{"format":"nailtool-rgb","version":1,"stage":"decode","height_px":1,"width_px":1' if header else b""
    )
    path.write_bytes(start + data)
    with pytest.raises(DataError):
        read_dump(path)


def test_a_dump_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.rgb: cannot be read"):
        read_dump(tmp_path / "none.rgb")


# -- the verdict ------------------------------------------------------------------------------------
def test_a_right_dump_passes_and_speaks_of_its_photos_alone(
    tmp_path: Path, samples: list[Sample], reference: Reference
) -> None:
    paths = [dump(tmp_path / "a.rgb", samples[0]), dump(tmp_path / "b.rgb", samples[0], stage="decode")]
    facts = check_ios_dumps(paths, samples, reference, IMAGES)
    assert [(f.stage, f.engine, f.passed) for f in facts] == [
        ("decode", "ios", True),
        ("preprocess", "ios", True),
    ]
    assert all(f.versions == PHONE and f.images.count == 1 for f in facts)
    assert facts[0].images.name == "made photos, 1 of 2"


def test_a_wrong_dump_fails_with_its_cause(
    tmp_path: Path, samples: list[Sample], reference: Reference
) -> None:
    path = dump(tmp_path / "a.rgb", samples[0], lambda image: image[..., ::-1])
    (fact,) = check_ios_dumps([path], samples, reference, IMAGES)
    assert fact.passed is False and fact.cause == "channels reversed (BGR instead of RGB)"


def test_without_a_dump_ios_is_not_measured(samples: list[Sample], reference: Reference) -> None:
    (fact,) = check_ios_dumps([], samples, reference, IMAGES)
    assert fact.passed is None and "--ios-dump" in fact.detail and fact.figures == {}


def test_a_dump_of_another_photo_or_a_second_one_is_refused(
    tmp_path: Path, samples: list[Sample], reference: Reference
) -> None:
    path = dump(tmp_path / "a.rgb", samples[0])
    with pytest.raises(DataError, match="not among"):
        check_ios_dumps([path], samples[1:], reference, IMAGES)
    with pytest.raises(DataError, match="second dump"):
        check_ios_dumps([path, path], samples, reference, IMAGES)


# -- what is written twice must stay the same ----------------------------------------------------------
def test_swift_and_javascript_carry_pythons_constants() -> None:
    swift, platform = (IOS / name for name in ("Preprocess.swift", "PreprocessPlatform.swift"))
    assert f"let padValue: UInt8 = {PAD_VALUE}\n" in swift.read_text("utf-8")
    fields = re.findall(r"let (\w+): ", platform.read_text("utf-8").split("private struct Header")[1])
    assert fields[: len(DumpHeader.model_fields)] == list(DumpHeader.model_fields)
    source = IOS.parent / "web" / "src"
    assert f"PAD_VALUE = {PAD_VALUE};" in (source / "preprocess.js").read_text("utf-8")
    for path in (IOS / "Postprocess.swift", source / "postprocess.js"):
        found = re.search(r"min_?coherence = (\S+?);?\s", path.read_text("utf-8"), re.IGNORECASE)
        assert found and float(found[1]) == MIN_COHERENCE


# -- CoreML's image input -------------------------------------------------------------------------------
class FakeModel:
    """A package that computes what torch does, behind an input that may be declared wrongly."""

    def __init__(self, reference: Reference, image: ImageSpec | None, count: int = 1) -> None:
        feature = Feature("image", (1, 3, SIDE, SIDE), "fp32", image)
        self.inputs = (feature,) * count
        self._reference = reference

    def run(self, inputs: dict[str, Any]) -> Any:
        image = inputs["image"]
        spec = self.inputs[0].image
        return self._reference.infer(image[..., ::-1] if spec and spec.color_space == "BGR" else image)


RIGHT: dict[str, Any] = {"color_space": "RGB", "height_px": SIDE, "width_px": SIDE, "bias": (-127.5,)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, ""),
        ({"color_space": "BGR"}, "Channels reversed"),
        ({"height_px": 320}, "288×320 px, not 288×288 px"),
        ({"bias": (-123.7, -116.3, -103.5)}, "shifts the input by 24 code values"),
        ({"scale": (1 / 255,)}, "shifts the input"),
    ],
)
def test_what_a_package_declares_is_compared_with_the_variant(
    wrong: dict[str, Any],
    message: str,
    samples: list[Sample],
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FakeModel(reference, ImageSpec(**{**RIGHT, **wrong}))
    monkeypatch.setattr("deploy.mil.load_package", lambda path: model)
    fact = image_input.check_image_input(Path("x.mlpackage"), samples, reference, IMAGES)
    assert fact.passed is not bool(message) and message in fact.detail
    assert fact.engine == "mil-reference" and "x.mlpackage" in fact.implementation
    json.loads(fact.model_dump_json())


def test_a_package_without_one_image_or_that_cannot_run_fails(
    samples: list[Sample], reference: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path) -> SimpleNamespace:
        raise ConversionError("op 'weird' at x is not known")

    for load, words in (
        (lambda path: FakeModel(reference, None), "not one image"),
        (lambda path: FakeModel(reference, ImageSpec(**RIGHT), 2), "2 inputs"),
        (refuse, "op 'weird'"),
    ):
        monkeypatch.setattr("deploy.mil.load_package", load)
        fact = image_input.check_image_input(tmp_path / "x.mlpackage", samples, reference, IMAGES)
        assert fact.passed is False and words in fact.detail
