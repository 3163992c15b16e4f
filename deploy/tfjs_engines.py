"""The browsers and backends a TF.js model is executed in, and what each of them needs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy import chromium, firefox, webkit
from deploy.browser import BrowserSession
from nailcore.errors import MissingToolError, UnknownNameError
from nailcore.facts import Skipped
from nailcore.runtime import Engine

Backend = Literal["wasm", "webgl", "webgpu"]
# On a CPU that plays the GPU one image takes seconds where wasm takes a fifth of one.
GPU_IMAGE_LIMIT = 2
WASM_TIMEOUT_S = 120.0  # per image
GPU_TIMEOUT_S = 600.0  # shaders are compiled during the first one


@dataclass(frozen=True)
class BrowserEngine:
    """How an engine is started: its browser, its backend and the backend's options."""

    engine: Engine
    backend: Backend
    borrow: Callable[[], BrowserSession]
    check_tools: Callable[[], object]  # raises MissingToolError
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU, real or played by the CPU."""
        return self.backend != "wasm"

    @property
    def run_timeout_s(self) -> float:
        """For one image."""
        return GPU_TIMEOUT_S if self.gpu else WASM_TIMEOUT_S


def _gpu(name: str) -> Engine:
    # Whether the GPU is played by the CPU is seen at run time; parity asks for numbers, never for speed.
    return Engine(name, default=False, software_gpu=True, image_limit=GPU_IMAGE_LIMIT)


_LIST = (
    BrowserEngine(Engine("chromium-wasm"), "wasm", chromium.borrow_session, chromium.find_browser),
    BrowserEngine(
        _gpu("chromium-webgl"), "webgl", lambda: chromium.borrow_session(gpu=True), chromium.find_browser
    ),
    BrowserEngine(
        _gpu("chromium-webgl-fp16"),
        "webgl",
        lambda: chromium.borrow_session(gpu=True),
        chromium.find_browser,
        {"forceFloat16": True},
    ),
    BrowserEngine(
        _gpu("chromium-webgpu"), "webgpu", lambda: chromium.borrow_session(gpu=True), chromium.find_browser
    ),
    BrowserEngine(
        Engine("firefox-wasm", default=False),
        "wasm",
        firefox.borrow_session,
        lambda: firefox.check_tools(gpu=False),
    ),
    BrowserEngine(
        _gpu("firefox-webgl"),
        "webgl",
        lambda: firefox.borrow_session(gpu=True),
        lambda: firefox.check_tools(gpu=True),
    ),
    BrowserEngine(Engine("webkit-wasm", default=False), "wasm", webkit.borrow_session, webkit.check_tools),
    BrowserEngine(_gpu("webkit-webgl"), "webgl", webkit.borrow_session, webkit.check_tools),
)
BROWSER_ENGINES = {spec.engine.name: spec for spec in _LIST}
ENGINES = tuple(spec.engine for spec in _LIST)


def find_browser_engine(name: str = "") -> BrowserEngine:
    """The engine of a name, the first one for ""; raises UnknownNameError with the nearest names."""
    if name and name not in BROWSER_ENGINES:
        raise UnknownNameError("engine", name, BROWSER_ENGINES)
    return BROWSER_ENGINES[name] if name else _LIST[0]


def find_obstacle(engine: str = "") -> Skipped | None:
    """Why an engine cannot run here, found out cheaply from what is installed; None where it can be tried."""
    spec = find_browser_engine(engine)
    try:
        spec.check_tools()
    except MissingToolError as error:
        return Skipped(what=f"TF.js in engine {spec.engine.name}", reason=error.message, remedy=error.hint)
    return None
