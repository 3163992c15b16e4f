"""A tiny three-headed TF.js model written by hand, without TensorFlow, and the same network in torch."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from nailcore.artifact import Artifact, MadeBy, describe_artifact

SIZE_PX = 64
NAMES = ("fgbg", "finger", "direction")
CHANNELS = {"fgbg": 2, "finger": 10, "direction": 2}
F32 = npt.NDArray[np.float32]


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _ints(values: Sequence[int]) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


class TinyModel:
    """Kernels (TensorFlow's layout) drawn from a seed; ``write`` makes the file, ``run`` the truth."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def kernel(*shape: int) -> F32:
            fan_in = np.prod(shape[:-1]) if shape[-1] > 1 else np.prod(shape[:2])
            return np.asarray(rng.normal(0, fan_in**-0.5, shape), np.float32)

        self.kernels = {
            "conv": kernel(3, 3, 3, 8),
            "depth": kernel(3, 3, 8, 2),
            "point": kernel(1, 1, 16, 16),
            **{f"{name}_conv": kernel(1, 1, 16, CHANNELS[name]) for name in NAMES},
        }
        self.biases = {
            name: np.asarray(
                rng.normal(0, 0.2, value.shape[2] * value.shape[3] if name == "depth" else value.shape[3]),
                np.float32,
            )
            for name, value in self.kernels.items()
        }
        self.nodes: list[dict[str, Any]] = []
        self.weights: list[tuple[str, npt.NDArray[Any]]] = []

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        dims = [{"size": str(size)} for size in values.shape]
        dtype = "DT_INT32" if values.dtype == np.int32 else "DT_FLOAT"
        tensor = {"dtype": dtype, "tensorShape": {"dim": dims}}
        self.nodes.append({"name": name, "op": "Const", "attr": {"value": {"tensor": tensor}}})
        self.weights.append((name, values))
        return name

    def _add(self, name: str, op: str, *inputs: str, **attributes: Any) -> None:
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})

    def _conv(
        self, name: str, op: str, x: str, *, stride: int = 1, dilation: int = 1, relu6: bool = False
    ) -> None:
        kernel = self._constant(f"{name}/kernel", self.kernels[name])
        bias = self._constant(f"{name}/bias", self.biases[name])
        fused = [_text("BiasAdd"), *([_text("Relu6")] if relu6 else [])]
        pad = dilation * (self.kernels[name].shape[0] // 2)
        same: dict[str, Any] = {"padding": {"s": _text("SAME")}, "explicit_paddings": {"list": {}}}
        if stride > 1:  # TensorFlow's SAME is lopsided then
            pads = [0, 0, pad, pad, pad, pad, 0, 0]
            same = {"padding": {"s": _text("EXPLICIT")}, "explicit_paddings": _ints(pads)}
        self._add(
            name,
            op,
            x,
            kernel,
            bias,
            T={"type": "DT_FLOAT"},
            data_format={"s": _text("NHWC")},
            strides=_ints([1, stride, stride, 1]),
            dilations=_ints([1, dilation, dilation, 1]),
            fused_ops={"list": {"s": fused}},
            epsilon={"f": 0.0},
            num_args={"i": "1"},
            **same,
        )

    def _build(self) -> None:
        self.nodes, self.weights = [], []
        shape = {"shape": {"dim": [{"size": str(n)} for n in (1, SIZE_PX, SIZE_PX, 3)]}}
        self._add("image", "Placeholder", dtype={"type": "DT_FLOAT"}, shape=shape)
        self._add("centred", "Sub", "image", self._constant("mean", np.full((1, 1, 1, 3), 127.5, np.float32)))
        self._add("scaled", "Mul", "centred", self._constant("scale", np.array(1 / 127.5, np.float32)))
        self._conv("conv", "_FusedConv2D", "scaled", stride=2, relu6=True)
        self._conv("depth", "FusedDepthwiseConv2dNative", "conv", dilation=2)
        self._add("alias", "Identity", "depth:0")
        self._conv("point", "_FusedConv2D", "alias", relu6=True)
        self._add("sum", "AddV2", "alias", "point", "^conv")
        size = self._constant("size", np.array([16, 16], np.int32))
        half = {"half_pixel_centers": {"b": True}, "align_corners": {"b": False}}
        self._add("small", "ResizeBilinear", "sum", size, **half)
        for name in NAMES:
            self._conv(f"{name}_conv", "_FusedConv2D", "small")
            self._add(name, "Identity", f"{name}_conv")

    def write(self, path: Path, dtype: str = "float32", shards: int = 1) -> Artifact:
        """A graph model's folder; kernels are stored as float32, float16, uint16 or uint8."""
        self._build()
        entries, stored = [], b""
        for name, values in self.weights:
            entry: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
            kept = values
            if name.endswith("/kernel") and dtype != "float32":
                entry["quantization"] = {"dtype": dtype, "original_dtype": "float32"}
                if dtype == "float16":
                    kept = values.astype(np.float16)
                else:
                    low = float(values.min())
                    scale = (float(values.max()) - low) / np.iinfo(dtype).max
                    entry["quantization"] |= {"min": low, "scale": scale}
                    kept = np.round((values - low) / scale).astype(dtype)
            entries.append(entry)
            stored += kept.tobytes()
        path.mkdir(parents=True)
        names = [f"group1-shard{index + 1}of{shards}.bin" for index in range(shards)]
        step = -(-len(stored) // shards)
        for index, name in enumerate(names):
            (path / name).write_bytes(stored[index * step : (index + 1) * step])
        document = {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes, "versions": {}},
            "signature": {
                "inputs": {"image": {"name": "image:0", "dtype": "DT_FLOAT"}},
                "outputs": {name: {"name": f"{name}:0", "dtype": "DT_FLOAT"} for name in NAMES},
            },
            "weightsManifest": [{"paths": names, "weights": entries}],
        }
        (path / "model.json").write_text(json.dumps(document))
        made_by = MadeBy(
            versions={}, config={}, parent="none", parent_sha256="", cpu_s=0, wall_s=0, peak_rss_bytes=0
        )
        return describe_artifact(
            path,
            kind="tfjs",
            variant="tiny-64",
            recipe="fp32",
            input_name="image",
            input_layout="NHWC",
            output_names={name: name for name in NAMES},
            made_by=made_by,
        )

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, F32]:
        """(1, H, W, 3) -> every layer's output by name, (1, C, h, w); computed by torch in float64."""
        values: dict[str, torch.Tensor] = {}

        def conv(name: str, x: torch.Tensor, **how: Any) -> torch.Tensor:
            kernel = torch.from_numpy(self.kernels[name]).double()
            kernel = kernel.permute(3, 2, 0, 1) if how.get("groups", 1) == 1 else _to_depthwise(kernel)
            values[name] = functional.conv2d(x, kernel, torch.from_numpy(self.biases[name]).double(), **how)
            return values[name]

        x = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).double()
        values["centred"] = x - 127.5
        values["scaled"] = values["centred"] * float(np.float32(1 / 127.5))
        values["conv"] = conv("conv", values["scaled"], stride=2, padding=1).clamp(0, 6)
        depth = conv("depth", values["conv"], padding=2, dilation=2, groups=8)
        values["point"] = conv("point", depth).clamp(0, 6)
        values["sum"] = depth + values["point"]
        values["small"] = functional.interpolate(
            values["sum"], (16, 16), mode="bilinear", align_corners=False
        )
        for name in NAMES:
            values[name] = conv(f"{name}_conv", values["small"])
        return {name: value.float().numpy() for name, value in values.items()}


def _to_depthwise(kernel: torch.Tensor) -> torch.Tensor:
    """(kh, kw, channels, multiplier) -> (channels * multiplier, 1, kh, kw), channel by channel."""
    parts = [kernel[:, :, c, m] for c in range(kernel.shape[2]) for m in range(kernel.shape[3])]
    return torch.stack(parts)[:, None]


def make_image(seed: int = 0) -> npt.NDArray[np.uint8]:
    """(1, 64, 64, 3), smooth enough to resemble a photo and different in each channel."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 9)))
    fine = functional.interpolate(coarse, (SIZE_PX, SIZE_PX), mode="bicubic").clamp(0, 255)
    return np.ascontiguousarray(fine.numpy().transpose(0, 2, 3, 1).astype(np.uint8))
