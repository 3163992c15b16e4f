"""Runs a TF.js model in a browser: the shipped runtime, files and loader; traces it node by node."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.browser import POOL
from deploy.tfjs_engines import BrowserEngine, find_browser_engine
from deploy.tfjs_graph import GraphModel
from deploy.web_server import BUNDLE_DIR
from nailcore.artifact import Artifact
from nailcore.errors import BrowserError, MissingToolError
from nailcore.runtime import Images, Layer, Logits

LOAD_TIMEOUT_S = 120.0


def read_bundle_versions() -> dict[str, str]:
    """Versions of the JavaScript packages inside the page's bundle."""
    found: dict[str, str] = json.loads((BUNDLE_DIR / "versions.json").read_text("utf-8"))
    return {
        name.removeprefix("@tensorflow/"): found[name] for name in found if name.startswith("@tensorflow/")
    }


class TfjsRunner:
    """TF.js in one engine; see :class:`nailcore.runtime.Runner` and ``Tracer``.

    ``settings`` says what was really obtained: backend, isolation, and for GPUs the renderer, whether the
    CPU plays it, and the width of its textures.

    Raises:
        MissingToolError: the browser, or the backend in it, does not exist here.
        ArtifactError: the folder is incomplete, damaged, or refused by TF.js.
        BrowserError: the browser failed, or did not do what the engine is named for.
    """

    def __init__(self, artifact: Artifact, path: Path, engine: str = "", *, threads: int = 1) -> None:
        self._engine = find_browser_engine(engine)
        self._model = GraphModel(path)
        self.artifact = artifact
        with contextlib.ExitStack() as stack:
            self._session = self._engine.borrow()
            stack.callback(POOL.give_back, self._session)
            self._page = self._session.open_page()
            stack.callback(self._session.close_page, self._page)
            self.backend = self._start(threads)
            self.settings = self._describe()
            url = f"{self._session.serve(path)}/model.json"
            self._call("loadModel", url, self._theirs, doing=f"loading {path.name}")
            self._borrowed = stack.pop_all()
        self.runtime = f"tfjs {self.backend['backend']}, {self._session.name}"
        packages = {
            name: found
            for name, found in read_bundle_versions().items()
            if not name.startswith("tfjs-backend-") or name == f"tfjs-backend-{self._engine.backend}"
        }
        self.versions = {**self._session.versions, **packages}

    @property
    def _theirs(self) -> list[str]:
        return list(self.artifact.output_names.values())

    def _start(self, threads: int) -> dict[str, Any]:
        engine, browser = self._engine, self._session.name
        options = {**engine.options, **({} if engine.gpu else {"threads": threads})}
        found: dict[str, Any] = self._call(
            "startBackend", engine.backend, options, doing=f"starting backend {engine.backend}"
        )
        if reason := found.get("unavailable"):
            raise MissingToolError(
                f"{browser} cannot run backend {engine.backend} here: {' '.join(str(reason).split())}.",
                hint="Another engine can check the same file; docs/browsers.md says what each one needs.",
            )
        check_precision(engine, browser, found)
        return found

    def _describe(self) -> dict[str, str]:
        settings = describe_backend(self.backend)
        if self._engine.gpu:
            renderer, software = self._session.describe_renderer(str(self.backend["renderer"]))
            settings |= {"renderer": renderer, "software gpu": software}
        return settings | {"user agent, as sent": str(self.backend["userAgent"])}

    def _call(self, function: str, *arguments: Any, doing: str, timeout_s: float = LOAD_TIMEOUT_S) -> Any:
        return self._session.call(self._page, function, *arguments, doing=doing, timeout_s=timeout_s)

    def _run_one(
        self, image: npt.NDArray[np.uint8], names: Sequence[str], doing: str
    ) -> list[npt.NDArray[np.float32]]:
        """(H, W, 3) -> one array per name in the file's own layout."""
        height, width, _ = image.shape
        results = self._call(
            "runImage",
            encode_pixels(image),
            height,
            width,
            list(names),
            doing=f"{doing} {self.artifact.label}",
            timeout_s=self._engine.run_timeout_s,
        )
        return [
            np.frombuffer(base64.b64decode(result["data"]), np.float32).reshape(result["shape"])
            for result in results
        ]

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> our names -> (N, C, h, w); one image at a time."""
        batches: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self.artifact.output_names}
        for image in images:
            values = self._run_one(image, self._theirs, "running")
            for name, value in zip(batches, values, strict=True):
                batches[name].append(value.transpose(0, 3, 1, 2))
        return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in batches.items()}

    def list_layers(self) -> list[Layer]:
        """All nodes that compute something, in order of execution."""
        return self._model.list_layers()

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of the named nodes for one (1, H, W, 3) RGB image; 4-D tensors as (N, C, h, w)."""
        values = self._run_one(image[0], names, "tracing")
        return {
            name: np.ascontiguousarray(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value)
            for name, value in zip(names, values, strict=True)
        }

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """Kernel of a convolution node as (out, in/groups, kh, kw), decompressed; None for other nodes."""
        return self._model.read_weight(name)

    def close(self) -> None:
        """Close the page; the last runner of a process also closes the browser."""
        self._borrowed.close()


def encode_pixels(image: npt.NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 as base64, the form in which the page takes an image."""
    return base64.b64encode(np.ascontiguousarray(image).tobytes()).decode("ascii")


def check_precision(engine: BrowserEngine, browser: str, backend: dict[str, Any]) -> None:
    """Forced 16-bit textures must really lose what only a float32 holds.

    Raises:
        BrowserError: the flag was set and the numbers did not change.
    """
    if engine.options.get("forceFloat16") and not (backend["forcedFloat16"] and not backend["keepsFloat32"]):
        raise BrowserError(
            f"{browser} was asked for 16-bit textures and still computes in 32 bits.",
            hint="Its numbers would say nothing about phones; use another version of the browser.",
        )


def describe_backend(backend: dict[str, Any]) -> dict[str, str]:
    """What the page got from TF.js, as settings for a report."""
    isolated = {"cross-origin isolated": "yes" if backend["crossOriginIsolated"] else "no"}
    if backend["backend"] == "wasm":
        return {
            "backend": "wasm",
            "wasm build": str(backend["build"]),
            "simd": "on" if backend["simd"] else "off",
            "threads": str(backend["threads"]),
            **isolated,
        }
    settings = {"backend": str(backend["backend"])}
    if backend["backend"] == "webgl":
        forced = " (forced)" if backend["forcedFloat16"] else ""
        settings["webgl version"] = str(backend["webglVersion"])
        settings["float textures"] = f"{'32' if backend['float32Textures'] else '16'} bit{forced}"
    settings["keeps float32"] = "yes" if backend["keepsFloat32"] else "no"
    return settings | isolated
