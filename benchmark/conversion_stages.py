"""Neighbouring stages of a conversion on the same photographs: which step changed numbers, by how much."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmark.comparison import Comparison
from benchmark.tf_stages import Order, run_child
from deploy import find_target
from nailcore.artifact import (
    Artifact,
    artifact_path,
    manifest_path,
    open_artifact,
    read_manifest,
    trace_weights,
    write_manifest,
)
from nailcore.data.folder import Sample
from nailcore.divergence_facts import StageError, StagePair
from nailcore.errors import DataError, UnknownNameError
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Logits, Runner
from nailcore.storage import hash_file
from nailcore.variant import Variant

Chain = Literal["onnx", "coreml", "tfjs", "tflite"]
CHAINS: tuple[Chain, ...] = ("onnx", "coreml", "tfjs", "tflite")
FP32: Mapping[str, Any] = {"name": "fp32", "weights_dtype": "float32", "compute_dtype": "float32"}


@dataclass(frozen=True)
class StageLogits:
    """What one stage computed for all photographs: (N, C, h, w) by output name."""

    name: str
    runtime: str
    logits: Logits


@dataclass(frozen=True)
class _Work:
    """What every stage is made from."""

    variant: Variant
    weights: Path
    recipe: Mapping[str, Any]
    images: Images  # (N, H, W, 3)
    out_dir: Path  # shipped files are looked for here
    scratch: Path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.variant.outputs)


def compare_stages(
    variant: Variant,
    weights: Path,
    chain: Chain,
    recipe: Mapping[str, Any],
    *,
    samples: Sequence[Sample],
    out_dir: Path,
) -> list[StagePair]:
    """Run every stage of a chain and compare each with the one before it.

    A shipped file in ``out_dir`` that descends from ``weights`` is the last stage as it is; all other
    files are made in a temporary folder inside ``out_dir`` and removed. TensorFlow works in a process of
    its own, the TF.js stages run in Chromium.

    Args:
        variant: what is converted.
        weights: its trained weights.
        chain: "onnx", "coreml", "tfjs" or "tflite".
        recipe: of the shipped file, as a target's ``convert`` takes it.
        samples: photographs; all stages see the same letterboxed pixels.
        out_dir: the output folder of a build.

    Raises:
        UnknownNameError: no such chain.
        DataError: no photographs.
        ConversionError, MissingToolError, ...: a stage cannot be made or executed here.
    """
    if chain not in CHAINS:
        raise UnknownNameError("chain", chain, CHAINS)
    if not samples:
        raise DataError("No photographs to compare stages on.")
    images = np.stack([letterbox(s.load_image(), variant.height_px, variant.width_px) for s in samples])
    walks = {"onnx": _walk_onnx, "coreml": _walk_coreml, "tfjs": _walk_tfjs, "tflite": _walk_tflite}
    out_dir.mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[StagePair, float]] = []
    with tempfile.TemporaryDirectory(prefix=".stages-", dir=out_dir) as scratch:
        before: StageLogits | None = None
        work = _Work(variant, weights, recipe, images, out_dir, Path(scratch))
        for stage in walks[chain](work):
            if before is not None:
                pairs.append(_compare(chain, work, before, stage, [sample.name for sample in samples]))
            before = stage
    return _rank(pairs)


def _compare(
    chain: Chain, work: _Work, before: StageLogits, after: StageLogits, names: Sequence[str]
) -> tuple[StagePair, float]:
    """One pair, and its squared error in fgbg."""
    comparison = Comparison()
    for place, name in enumerate(names):
        one = slice(place, place + 1)
        comparison.add(
            name,
            {output: values[one] for output, values in before.logits.items()},
            {output: values[one] for output, values in after.logits.items()},
        )
    pair = StagePair(
        chain=chain,
        variant=work.variant.name,
        recipe=str(work.recipe["name"]),
        before=before.name,
        after=after.name,
        runtimes=(before.runtime, after.runtime),
        outputs=[StageError(name=o.name, max_abs=o.max_abs, psnr_db=o.psnr_db) for o in comparison.outputs()],
        flipped_permille=comparison.flipped_permille,
        mask_iou=comparison.mask_iou,
        share=0.0,
        largest=False,
        images=len(names),
    )
    return pair, comparison.totals["fgbg"].squared


def _rank(pairs: Sequence[tuple[StagePair, float]]) -> list[StagePair]:
    """Each pair's share of the chain's squared error, and which one is the largest."""
    total = sum(squared for _, squared in pairs)
    largest = max((squared for _, squared in pairs), default=0.0)
    return [
        pair.model_copy(
            update={"share": squared / total if total else 0.0, "largest": bool(total) and squared == largest}
        )
        for pair, squared in pairs
    ]


# -- stages ------------------------------------------------------------------------------------
def _run(name: str, runner: Runner, images: Images) -> StageLogits:
    """All photographs through one runner, which is closed afterwards."""
    try:
        parts = [runner.run(images[place : place + 1]) for place in range(len(images))]
        logits = {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
        return StageLogits(name, runner.runtime, logits)
    finally:
        runner.close()


class TorchRunner:
    """The trained network in torch; see :class:`nailcore.runtime.Runner`.

    In float64: what folding loses, by rounding its weights to float32, is told from torch's float32 sums.
    """

    def __init__(self, variant: Variant, weights: Path, *, folded: bool) -> None:
        import torch

        from nailcore.nets import load_network
        from nailcore.nets.weights import load_weights

        self.versions = {"torch": str(torch.__version__)}
        form = "BatchNorm folded" if folded else "BatchNorm separate"
        self.runtime = f"torch {self.versions['torch']}, float64, {form}"
        self._names = [output.name for output in variant.outputs]
        mean = torch.tensor(variant.mean).view(1, 3, 1, 1).double()
        std = torch.tensor(variant.std).view(1, 3, 1, 1).double()
        self._compute: Callable[[Any], Any]
        if folded:
            self._compute = load_network(variant, weights).double()
        else:
            trained = load_weights(variant, weights).double()
            self._compute = lambda image: [trained((image - mean) / std)[name] for name in self._names]

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named float32 logits."""
        import torch

        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).double()
        with torch.inference_mode():
            values = self._compute(x)
        return {name: value.float().numpy() for name, value in zip(self._names, values, strict=True)}

    def close(self) -> None:
        """Nothing to give back."""


def _walk_torch(work: _Work) -> Iterator[StageLogits]:
    for name, folded in (("torch", False), ("torch, BatchNorm folded", True)):
        yield _run(name, TorchRunner(work.variant, work.weights, folded=folded), work.images)


def _open(artifact: Artifact, path: Path) -> Runner:
    return find_target(artifact.kind).open_runner(artifact, path)


def _convert(
    work: _Work, kind: str, recipe: Mapping[str, Any], parent: Path, **options: Any
) -> tuple[Artifact, Path]:
    target = find_target(kind)
    label = "-".join([str(recipe["name"]), *(f"{key}-{value}" for key, value in options.items())])
    path = artifact_path(work.scratch, work.variant.name, label.lower(), target.SUFFIX)
    if not manifest_path(path).is_file():  # two stages may rest on one file
        write_manifest(path, target.convert(work.variant, dict(recipe), parent, path, **options))
    return open_artifact(manifest_path(path))


def _find_shipped(work: _Work, kind: str, recipe: Mapping[str, Any]) -> tuple[Artifact, Path] | None:
    """The shipped file, if it is there, whole, and made from these weights."""
    suffix = find_target(kind).SUFFIX
    manifest = manifest_path(artifact_path(work.out_dir, work.variant.name, str(recipe["name"]), suffix))
    if not manifest.is_file():
        return None

    def find_parent(_child: Artifact, file: str) -> Artifact | None:
        parent = manifest_path(manifest.parent / file)
        return read_manifest(parent) if parent.is_file() else None

    if trace_weights(read_manifest(manifest), find_parent) != hash_file(work.weights):
        return None
    return open_artifact(manifest)


def _ship(work: _Work, kind: str, recipe: Mapping[str, Any], parent: Path) -> tuple[Artifact, Path]:
    return _find_shipped(work, kind, recipe) or _convert(work, kind, recipe, parent)


def _is_fp32(recipe: Mapping[str, Any]) -> bool:
    return str(recipe["name"]) == "fp32"


def _walk_onnx(work: _Work) -> Iterator[StageLogits]:
    yield from _walk_torch(work)
    exported = _convert(work, "onnx", FP32, work.weights, simplify=False)
    yield _run("ONNX as exported", _open(*exported), work.images)
    simplified = _ship(work, "onnx", FP32, work.weights)
    yield _run("ONNX simplified", _open(*simplified), work.images)
    if not _is_fp32(work.recipe):
        quantized = _ship(work, "onnx", work.recipe, work.weights)
        yield _run(f"ONNX {work.recipe['name']}", _open(*quantized), work.images)


def _freeze(
    work: _Work, files: Sequence[tuple[str, Path, Mapping[str, Any], Mapping[str, Any]]]
) -> StageLogits:
    """The frozen graph of the ONNX file, executed by TensorFlow, which also writes ``files`` from it."""
    _, onnx = _ship(work, "onnx", FP32, work.weights)
    images, frozen = work.scratch / "images.npy", work.scratch / "frozen.npz"
    np.save(images, work.images)
    orders = [(kind, str(path), recipe, options) for kind, path, recipe, options in files]
    order = Order(str(onnx), work.variant.name, str(images), str(frozen), orders)
    return StageLogits("TF frozen graph", "tensorflow, CPU", run_child(order, work.scratch))


def _walk_tfjs(work: _Work) -> Iterator[StageLogits]:
    yield from _walk_onnx(replace(work, recipe=FP32))
    shipped = _find_shipped(work, "tfjs", work.recipe)
    names = {"none": "TF.js as converted", "fold": "dilations folded", "fuse": "convolutions fused"}
    folders = {passes: work.scratch / f"{passes}.tfjs" for passes in names}
    last = work.scratch / "shipped.tfjs"
    files = [("tfjs", folder, FP32, {"passes": passes}) for passes, folder in folders.items()]
    if shipped is None:
        files.append(("tfjs", last, work.recipe, {}))
    yield _freeze(work, files)
    with _keep_browser(folders["none"]):
        for passes, folder in folders.items():
            yield _run(names[passes], _open(*open_artifact(manifest_path(folder))), work.images)
        name = "shipped TF.js" if _is_fp32(work.recipe) else f"TF.js {work.recipe['name']}"
        yield _run(name, _open(*(shipped or open_artifact(manifest_path(last)))), work.images)


def _walk_tflite(work: _Work) -> Iterator[StageLogits]:
    yield from _walk_onnx(replace(work, recipe=FP32))
    recipes = [FP32] if _is_fp32(work.recipe) else [FP32, work.recipe]
    shipped = {str(recipe["name"]): _find_shipped(work, "tflite", recipe) for recipe in recipes}
    paths = {name: work.scratch / f"{name}.tflite" for name in shipped}
    missing = [recipe for recipe in recipes if shipped[str(recipe["name"])] is None]
    yield _freeze(work, [("tflite", paths[str(recipe["name"])], recipe, {}) for recipe in missing])
    for name, found in shipped.items():
        runner = _open(*(found or open_artifact(manifest_path(paths[name]))))
        yield _run(f"TFLite {name}", runner, work.images)


@contextmanager
def _keep_browser(folder: Path) -> Iterator[None]:
    """One browser for all stages: the last runner to close would end it."""
    artifact, path = open_artifact(manifest_path(folder))
    runner = find_target("tfjs").open_runner(artifact, path)
    try:
        yield
    finally:
        runner.close()


def _walk_coreml(work: _Work) -> Iterator[StageLogits]:
    yield from _walk_torch(work)
    sibling = _ship(work, "coreml", FP32, work.weights)
    yield _run("MIL fp32", _open_reference(*sibling), work.images)
    half = {**FP32, "name": "fp16", "weights_dtype": "float16", "compute_dtype": "float16"}
    if work.recipe.get("compute_dtype") == "float16":
        yield _run("MIL fp16", _open_reference(*_ship(work, "coreml", half, work.weights)), work.images)
    if str(work.recipe["name"]) not in ("fp32", "fp16"):
        compressed = _ship(work, "coreml", work.recipe, work.weights)
        yield _run(f"MIL {work.recipe['name']}", _open_reference(*compressed), work.images)


def _open_reference(artifact: Artifact, path: Path) -> Runner:
    return find_target("coreml").open_runner(artifact, path, "mil-reference")


def describe_stages(pairs: Sequence[StagePair]) -> str:
    """The pairs as lines for a terminal; the largest contribution is marked."""
    lines = []
    for pair in pairs:
        worst = max(pair.outputs, key=lambda output: output.max_abs)
        psnr = "identical" if worst.psnr_db is None else f"{worst.psnr_db:.1f} dB"
        lines.append(
            f"{'►' if pair.largest else ' '} {pair.before} → {pair.after}: max-abs {worst.max_abs:.3g} "
            f"({worst.name}, {psnr}), flipped {pair.flipped_permille:.3f} ‰, mask IoU {pair.mask_iou:.4f}, "
            f"{pair.share:.2%} of the error"
        )
    return "\n".join(lines)
