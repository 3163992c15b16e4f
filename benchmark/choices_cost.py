"""What each choice of a network costs: CPU-ms in onnxruntime and in TF.js on wasm, and bytes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmark.choices import Cost
from benchmark.latency import ProfileSettings
from nailcore.artifact import artifact_path, read_manifest, write_manifest
from nailcore.facts import Measurement
from nailcore.variant import Variant


def measure_costs(variants: Sequence[Variant], scratch: Path, rounds: int) -> list[Cost]:
    """Medians of interleaved samples, one thread each; random weights, speed does not care.

    TF.js is timed where Chromium is found; ``tfjs_wasm_cpu_ms`` is None elsewhere.
    """
    from benchmark.devices import chromium, cpu

    settings = ProfileSettings(rounds=rounds)
    manifests = [_write_onnx(v, scratch / f"cost{n}") for n, v in enumerate(variants)]
    rows = cpu.profile(manifests, settings, lambda done, total: None)
    browser: Sequence[Measurement | None] = [None] * len(variants)
    if chromium.find_obstacle() is None:
        # TensorFlow must not meet torch, which trained the networks in this process.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            folders = list(pool.map(_write_tfjs, variants, manifests))
        browser = chromium.profile(folders, settings, lambda done, total: None)
    return [
        Cost(
            cpu_ms=row.median_cpu_ms,
            size_bytes=row.artifact.size_bytes,
            samples=len(row.cpu_ms),
            tfjs_wasm_cpu_ms=None if page is None else page.median_cpu_ms,
            tfjs_wasm_samples=0 if page is None else len(page.cpu_ms),
            tfjs_versions={} if page is None else page.versions,
        )
        for row, page in zip(rows, browser, strict=True)
    ]


def _write_onnx(variant: Variant, folder: Path) -> Path:
    """The fp32 ONNX file of random weights; its manifest."""
    import torch

    from deploy import onnx
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.weights import save_weights

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "random.safetensors"
    network = build_cascade(variant)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Untrained shifts are zero: converters drop such biases, and nothing would be fused with them.
            torch.nn.init.uniform_(module.bias, 0.05, 0.1)
    save_weights(network, weights, {"encoder": variant.encoder})
    path = artifact_path(folder, variant.name, "fp32", onnx.SUFFIX)
    return write_manifest(path, onnx.convert(variant, {"name": "fp32"}, weights, path))


def _write_tfjs(variant: Variant, onnx_manifest: Path) -> Path:
    """The fp32 TF.js folder made from the ONNX file; its manifest."""
    from deploy import tfjs

    parent = onnx_manifest.parent / read_manifest(onnx_manifest).file
    path = artifact_path(onnx_manifest.parent, variant.name, "fp32", tfjs.SUFFIX)
    return write_manifest(path, tfjs.convert(variant, {"name": "fp32"}, parent, path))
