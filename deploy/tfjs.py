"""Target TF.js: an ONNX file becomes a graph model that a browser loads over HTTP and runs by name."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.chromium import BUNDLE_DIR, borrow_session, return_session
from deploy.onnx_to_tf import INPUT_NAME, freeze_onnx, quiet_native_logs
from deploy.tf_passes import count_ops
from deploy.tfjs_write import Passes, optimise, write_model
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Images, Logits
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

KIND = "tfjs"
SUFFIX = ".tfjs"  # a folder: model.json and its weight shards, nothing else
PARENT = "onnx"
ENGINES = (Engine("chromium-wasm"),)
TOOLS = ("onnx2tf", "tensorflow", "tf-keras", "tensorflowjs", "onnxruntime", "numpy")
LOAD_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 120.0  # per image
_BYTES = {"float32": 4, "int32": 4, "float16": 2}


def convert(
    variant: Variant, recipe: dict[str, Any], parent: Path, out: Path, *, passes: Passes = "fuse"
) -> Artifact:
    """Convert the ONNX file at ``parent`` to a TF.js graph model in the folder ``out``.

    The model takes ``image``, (1, H, W, 3) float32 RGB 0..255, and gives logits (1, h, w, C) by our
    names. ``passes`` is "fuse" for what ships; "none" and "fold" exist to measure what the passes gain.

    Raises:
        ConversionError: a converter failed, lost a name, or left a dilated convolution split.
    """
    names = tuple(output.name for output in variant.outputs)
    with measure_cost() as cost, quiet_native_logs():
        model = freeze_onnx(parent, names)
        graph = optimise(model, passes)
        with replacing(out) as scratch:
            write_model(graph, names, str(recipe.get("weights_dtype", "float32")), scratch)
    before, after = count_ops(model.graph), count_ops(graph)
    return describe_artifact(
        out,
        kind=KIND,
        variant=variant.name,
        recipe=str(recipe["name"]),
        input_name=INPUT_NAME,
        input_layout="NHWC",
        output_names={name: name for name in names},
        made_by=MadeBy(
            versions=find_versions(TOOLS),
            config={"variant": variant.model_dump(mode="json"), "recipe": recipe, "passes": passes},
            parent=parent.name,
            parent_sha256=hash_file(parent),
            cpu_s=cost.cpu_s,
            wall_s=cost.wall_s,
            peak_rss_bytes=cost.peak_rss_bytes,
        ),
        structure={
            "ops": after,
            "ops_before": before,
            "space_to_batch_before": before.get("SpaceToBatchND", 0),
            "space_to_batch_after": after.get("SpaceToBatchND", 0),
            "nodes_before": sum(before.values()),
            "nodes": sum(after.values()),
        },
    )


def check_folder(path: Path) -> None:
    """A graph model's folder must be readable, complete and of the size its manifest promises.

    Raises:
        ArtifactError: naming the file.
    """
    hint = "Run `nailtool build-variants`; it will be made again."
    try:
        document = json.loads((path / "model.json").read_text("utf-8"))
        groups = document["weightsManifest"]
        for group in groups:
            expected = sum(_stored_bytes(weight) for weight in group["weights"])
            found = sum((path / shard).stat().st_size for shard in group["paths"])
            if found != expected:
                shards = ", ".join(group["paths"])
                raise ArtifactError(f"{path}: {shards} hold {found} bytes, not {expected}.", hint=hint)
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read: {error.strerror}.", hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path / 'model.json'}: not a TF.js model: {error!r}", hint=hint) from error


def _stored_bytes(weight: dict[str, Any]) -> int:
    dtype = str(weight.get("quantization", {}).get("dtype", weight["dtype"]))
    return int(math.prod(weight["shape"])) * _BYTES[dtype]


def read_bundle_versions() -> dict[str, str]:
    """Versions of the JavaScript packages inside the page's bundle."""
    found: dict[str, str] = json.loads((BUNDLE_DIR / "versions.json").read_text("utf-8"))
    return {
        name.removeprefix("@tensorflow/"): found[name] for name in found if name.startswith("@tensorflow/")
    }


class TfjsRunner:
    """TF.js with its wasm backend in headless Chromium; see :class:`nailcore.runtime.Runner`."""

    def __init__(self, artifact: Artifact, path: Path, *, threads: int = 1) -> None:
        check_folder(path)
        self.artifact = artifact
        self._session = borrow_session()
        try:
            self._page = self._session.open_page()
            self.backend: dict[str, Any] = self._call(
                "startBackend", "wasm", {"threads": threads}, doing="starting the backend"
            )
            url = f"{self._session.serve(path)}/model.json"
            self._call("loadModel", url, self._theirs, doing=f"loading {path.name}")
        except BaseException:
            return_session(self._session)
            raise
        self.runtime = f"tfjs {self.backend['backend']}, Chromium"
        self.versions = {**self._session.versions, **read_bundle_versions()}
        self.settings = describe_backend(self.backend)

    @property
    def _theirs(self) -> list[str]:
        return list(self.artifact.output_names.values())

    def _call(self, function: str, *arguments: Any, doing: str, timeout_s: float = LOAD_TIMEOUT_S) -> Any:
        return self._session.call(self._page, function, *arguments, doing=doing, timeout_s=timeout_s)

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> our names -> (N, C, h, w); one image at a time."""
        batches: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self.artifact.output_names}
        for image in images:
            height, width, _ = image.shape
            results = self._call(
                "runImage",
                encode_pixels(image),
                height,
                width,
                doing=f"running {self.artifact.label}",
                timeout_s=RUN_TIMEOUT_S,
            )
            for name, result in zip(batches, results, strict=True):
                values = np.frombuffer(base64.b64decode(result["data"]), np.float32)
                batches[name].append(values.reshape(result["shape"]).transpose(0, 3, 1, 2))
        return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in batches.items()}

    def close(self) -> None:
        """Close the page; the last runner of a process also closes the browser."""
        self._session.close_page(self._page)
        return_session(self._session)


def encode_pixels(image: npt.NDArray[np.uint8]) -> str:
    """(H, W, 3) uint8 as base64, the form in which the page takes an image."""
    return base64.b64encode(np.ascontiguousarray(image).tobytes()).decode("ascii")


def describe_backend(backend: dict[str, Any]) -> dict[str, str]:
    """What the page got from TF.js, as settings for a report."""
    return {
        "backend": str(backend["backend"]),
        "wasm build": str(backend["build"]),
        "simd": "on" if backend["simd"] else "off",
        "threads": str(backend["threads"]),
        "cross-origin isolated": "yes" if backend["crossOriginIsolated"] else "no",
    }


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> TfjsRunner:
    """Load exactly the files at ``path`` over HTTP into headless Chromium, wasm backend, one thread.

    Raises:
        MissingToolError: no Chromium here.
        ArtifactError: the folder is incomplete, damaged, or refused by TF.js.
    """
    return TfjsRunner(artifact, path)
