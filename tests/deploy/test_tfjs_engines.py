"""TF.js in every engine that is installed: the same numbers, and a true account of what was obtained."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.parity import check_parity
from deploy import tfjs, tfjs_runner
from deploy.tfjs_engines import BROWSER_ENGINES
from deploy.tfjs_runner import TfjsRunner
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact
from nailcore.data.folder import Dataset
from nailcore.errors import ArtifactError, BrowserError, MissingToolError
from tests.browser_marks import engine_mark
from tests.built import build_artifact
from tests.deploy.tiny_tfjs import NAMES, TinyModel, make_image
from tests.photos import load_images


def installed(*engines: str) -> list[Any]:
    return [pytest.param(engine, marks=[pytest.mark.browser, engine_mark(engine)]) for engine in engines]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    path = tmp_path_factory.mktemp("tiny") / "tiny.tfjs"
    return TinyModel().write(path), path


def open_or_skip(artifact: Artifact, path: Path, engine: str) -> TfjsRunner:
    """Where Mesa or a driver is missing an installed browser has no GPU at all: that is said, not failed.

    Chromium brings its own software GPU, so nothing excuses it.
    """
    try:
        return tfjs.open_runner(artifact, path, engine)
    except MissingToolError as error:
        if engine.startswith("chromium-w") and engine != "chromium-webgpu":
            raise
        pytest.skip(str(error).replace("\n", " "))


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", installed(*BROWSER_ENGINES))
def test_every_node_computes_what_torch_computes(tiny: tuple[Artifact, Path], engine: str) -> None:
    image, forced = make_image(), engine.endswith("fp16")
    expected = TinyModel().run(image)
    runner = open_or_skip(*tiny, engine)
    try:
        found = runner.run(np.concatenate([image, image]))
        layers = [layer.name for layer in runner.list_layers()]
        traced = runner.trace(image, layers)
        with pytest.raises(ArtifactError, match="nowhere"):
            runner.trace(image, ["nowhere"])
    finally:
        runner.close()
    assert list(found) == list(NAMES)
    errors = []
    for name in NAMES:
        assert found[name].dtype == np.float32 and found[name].shape == (2, *expected[name].shape[1:])
        np.testing.assert_array_equal(found[name][0], found[name][1])
        errors.append(float(np.abs(found[name][:1] - expected[name]).max()))
    # What is forced must show, and stay within what 11 bits explain.
    assert (1e-4 < max(errors) < 0.05) if forced else max(errors) < 1e-5
    assert list(traced) == layers
    for name, value in traced.items():
        reference = expected[name.removesuffix("_conv")] if name not in expected else expected[name]
        assert value.shape == reference.shape, name
        scale = float(np.abs(reference).max())
        assert float(np.abs(value - reference).max()) / scale < (0.02 if forced else 1e-5), name
    check_account(runner, engine)


def check_account(runner: TfjsRunner, engine: str) -> None:
    """What the runner says of itself goes into facts and reports."""
    browser, _, backend = engine.partition("-")
    settings = runner.settings
    assert settings["backend"] == backend.removesuffix("-fp16")
    assert settings["cross-origin isolated"] == "yes"
    assert settings["user agent, as sent"].startswith("Mozilla/5.0")
    assert runner.versions["tfjs-core"] and runner.versions[f"tfjs-backend-{settings['backend']}"]
    assert {"chromium": "chromium", "firefox": "firefox", "webkit": "webkitgtk"}[browser] in runner.versions
    assert "Safari" not in runner.runtime and "Apple" not in runner.runtime
    if backend == "wasm":
        assert settings["threads"] == "1" and "renderer" not in settings
        return
    assert settings["renderer"] and settings["software gpu"] in ("yes", "no")
    if browser == "webkit":
        assert settings["renderer"].startswith("masked by WebKit: ")
    if os.environ.get("CI"):
        assert settings["software gpu"] == "yes"
    assert settings["keeps float32"] == ("no" if engine.endswith("fp16") else "yes")
    if settings["backend"] == "webgl":
        expected = "16 bit (forced)" if engine.endswith("fp16") else "32 bit"
        assert settings["float textures"] == expected


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = load_images(tmp_path_factory.mktemp("images") / "set")
    return dataclasses.replace(dataset, samples=dataset.samples[:1])


SHIPPED = [
    *(
        ("nail43-288", engine)
        for engine in ("chromium-wasm", "chromium-webgl", "firefox-wasm", "webkit-wasm")
    ),
    *(("nail55-288", engine) for engine in ("chromium-wasm", "chromium-webgl")),
]


@pytest.mark.parametrize(
    ("variant_name", "engine"),
    [pytest.param(*case, marks=[pytest.mark.browser, engine_mark(case[1])]) for case in SHIPPED],
)
def test_shipped_networks_keep_their_limits(variant_name: str, engine: str, image: Dataset) -> None:
    manifest = build_artifact(variant_name, "tfjs", "fp32")
    weights = weights_path(find_variant(variant_name))
    result = check_parity(manifest, weights, image, "held-out", engine=engine)
    assert (result.status, result.failures) == ("passed", [])
    assert result.engine == engine and result.images.count == 1
    assert max(output.max_abs for output in result.outputs) <= 1e-4
    assert result.software_gpu is (engine == "chromium-webgl")
    assert result.settings["backend"] == engine.partition("-")[2]


# -- what the page can say -------------------------------------------------------------------------


class FakeSession:
    """A browser that answers ``startBackend`` as told."""

    name = "Fakefox"
    alive = True

    def __init__(self, answer: dict[str, Any]) -> None:
        self.process = os.getpid()
        self.versions = {"fakefox": "1"}
        self.answer = answer
        self.asked: list[tuple[str, Any]] = []
        self.pages = 0
        self.closed = 0

    def serve(self, folder: Path) -> str:
        """Nothing is served."""
        return f"http://nowhere/{folder.name}"

    def open_page(self) -> int:
        """Count."""
        self.pages += 1
        return self.pages

    def close_page(self, page: int) -> None:
        """Count back."""
        self.pages -= 1

    def call(self, page: int, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """The prepared answer to the one question that matters."""
        self.asked.append((function, arguments))
        return self.answer if function == "startBackend" else None

    def describe_renderer(self, renderer: str) -> tuple[str, str]:
        """As it is."""
        return renderer, "no"

    def close(self) -> None:
        """Count."""
        self.closed += 1


WEBGL = {
    "backend": "webgl",
    "renderer": "Mali-G715",
    "webglVersion": 1,
    "float32Textures": False,
    "forcedFloat16": False,
    "keepsFloat32": False,
    "crossOriginIsolated": False,
    "userAgent": "Mozilla/5.0",
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSession]:
    """Every engine is a FakeSession; the pool is left as it was found."""
    session = FakeSession(dict(WEBGL))

    def find(name: str) -> Any:
        spec = BROWSER_ENGINES[name]
        return dataclasses.replace(spec, borrow=lambda: session)

    monkeypatch.setattr(tfjs_runner, "find_browser_engine", find)
    yield session
    assert session.pages == 0, "a page was left open"


def test_a_browser_without_webgl_is_a_missing_tool(tiny: tuple[Artifact, Path], fake: FakeSession) -> None:
    fake.answer = {"unavailable": "disabled by\n policy"}
    with pytest.raises(
        MissingToolError, match=r"Fakefox cannot run backend webgl here: disabled by policy\."
    ):
        tfjs.open_runner(*tiny, "firefox-webgl")


def test_16_bit_textures_that_are_not_is_no_verdict(tiny: tuple[Artifact, Path], fake: FakeSession) -> None:
    fake.answer |= {"forcedFloat16": True, "keepsFloat32": True}
    with pytest.raises(BrowserError, match="still computes in 32 bits"):
        tfjs.open_runner(*tiny, "chromium-webgl-fp16")


def test_a_phone_like_gpu_is_described_as_it_is(tiny: tuple[Artifact, Path], fake: FakeSession) -> None:
    runner = tfjs.open_runner(*tiny, "chromium-webgl")
    runner.close()
    assert runner.settings == {
        "backend": "webgl",
        "webgl version": "1",
        "float textures": "16 bit",
        "keeps float32": "no",
        "cross-origin isolated": "no",
        "renderer": "Mali-G715",
        "software gpu": "no",
        "user agent, as sent": "Mozilla/5.0",
    }
    assert fake.asked[0] == ("startBackend", ("webgl", {}))


def test_only_the_forced_engine_asks_for_16_bits(tiny: tuple[Artifact, Path], fake: FakeSession) -> None:
    fake.answer |= {"forcedFloat16": True}
    tfjs.open_runner(*tiny, "chromium-webgl-fp16").close()
    assert fake.asked[0] == ("startBackend", ("webgl", {"forceFloat16": True}))


@pytest.mark.browser
@engine_mark("chromium-webgl")
def test_a_lost_gpu_is_no_verdict(tiny: tuple[Artifact, Path]) -> None:
    """A lost context answers with zeros: they must never be compared with anything."""
    runner = tfjs.open_runner(*tiny, "chromium-webgl")
    page: Any = runner._page
    image = make_image()
    try:
        runner.run(image)
        page.evaluate(
            "() => { const get = WebGL2RenderingContext.prototype.isContextLost;"
            "WebGL2RenderingContext.prototype.isContextLost = () => true; return get; }"
        )
        with pytest.raises(BrowserError, match=r"Chromium failed while running .*lost its GPU context"):
            runner.run(image)
    finally:
        runner.close()


def test_engines_are_listed_the_usual_one_first() -> None:
    names = [engine.name for engine in tfjs.ENGINES]
    assert names[0] == "chromium-wasm" and names == list(BROWSER_ENGINES)
    for engine in tfjs.ENGINES:
        assert engine.software_gpu is ("web" in engine.name.partition("-")[2])
        assert (engine.image_limit is not None) is engine.software_gpu
