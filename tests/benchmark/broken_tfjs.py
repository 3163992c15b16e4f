"""TF.js folders with one planted defect each, named with the torch module and the cause to be found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class Folder:
    """A graph model whose nodes and float32 weights can be edited in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = json.loads((path / "model.json").read_text("utf-8"))
        self.nodes = {node["name"]: node for node in self.document["modelTopology"]["node"]}
        (self.group,) = self.document["weightsManifest"]
        self.blob = bytearray(b"".join((path / shard).read_bytes() for shard in self.group["paths"]))

    def conv(self, shape: tuple[int, ...], place: int = 0) -> Any:
        """The ``place``-th convolution with a kernel of this shape (TF's own layout), in the file's order."""
        found = [
            node
            for node in self.nodes.values()
            if "Conv" in node["op"] and tuple(self._entry(node["input"][1])[0]["shape"]) == shape
        ]
        return found[place]

    def _entry(self, name: str) -> tuple[Any, int]:
        offset = 0
        for weight in self.group["weights"]:
            if weight["name"] == name:
                return weight, offset
            offset += 4 * math.prod(weight["shape"])
        raise KeyError(name)

    def change(self, name: str, edit: Callable[[Any], Any]) -> None:
        """Edit a stored tensor; it must change and keep its shape."""
        weight, offset = self._entry(name)
        count = math.prod(weight["shape"])
        before = np.frombuffer(self.blob, np.float32, count, offset).reshape(weight["shape"]).copy()
        after = np.ascontiguousarray(edit(before.copy()), np.float32)
        assert after.shape == before.shape and not np.array_equal(after, before)
        self.blob[offset : offset + 4 * count] = after.tobytes()

    def save(self) -> None:
        """Write everything back, shard by shard."""
        start = 0
        for shard in self.group["paths"]:
            size = (self.path / shard).stat().st_size
            (self.path / shard).write_bytes(self.blob[start : start + size])
            start += size
        (self.path / "model.json").write_text(json.dumps(self.document), "utf-8")


@dataclass(frozen=True)
class FolderDefect:
    """One planted defect: ``plant`` edits the folder before it is saved."""

    name: str
    plant: Callable[[Folder], None]
    module: str
    cause: str


DILATED = (3, 3, 96, 128)  # fusion16.project_f1 of the 43-layer net
DENSE = (3, 3, 128, 128)  # fusion8.project_f1
EXPAND = (1, 1, 64, 384)  # low stages 5.1, 5.2, 5.3 and 6.0


def undilate(folder: Folder) -> None:
    folder.conv(DILATED)["attr"]["dilations"] = {"list": {"i": ["1", "1", "1", "1"]}}


def drop_bias(folder: Folder) -> None:
    folder.change(folder.conv(EXPAND)["input"][2], np.zeros_like)


def raise_clip(folder: Folder) -> None:
    """Relu6 becomes Relu inside the fused node."""
    fused = folder.conv(EXPAND, 1)["attr"]["fused_ops"]["list"]["s"]
    assert fused[1] == "UmVsdTY="  # "Relu6"
    fused[1] = "UmVsdQ=="  # "Relu"


def align_corners(folder: Folder) -> None:
    source = folder.nodes[folder.conv(DENSE)["input"][0]]
    source["attr"]["align_corners"] = {"b": True}
    source["attr"]["half_pixel_centers"] = {"b": False}


def transpose_kernel(folder: Folder) -> None:
    folder.change(folder.conv(DENSE)["input"][1], lambda w: w.swapaxes(0, 1))


def shift_padding(folder: Folder) -> None:
    """TensorFlow's own SAME at stride 2: nothing before, one after."""
    node = next(
        n
        for n in folder.nodes.values()
        if n["op"].startswith("FusedDepthwise") and "2" in n["attr"]["strides"]["list"]["i"]
    )
    node["attr"]["padding"] = {"s": "U0FNRQ=="}  # "SAME"
    node["attr"]["explicit_paddings"] = {"list": {}}


def stale_shard(folder: Folder) -> None:
    """Another training's bytes in one kernel."""
    rng = np.random.default_rng(0)
    folder.change(folder.conv(EXPAND, 2)["input"][1], lambda w: w + 0.02 * rng.standard_normal(w.shape))


def swap_heads(folder: Folder) -> None:
    one, two = folder.nodes["fgbg"], folder.nodes["direction"]
    one["input"], two["input"] = two["input"], one["input"]


def swap_direction(folder: Folder) -> None:
    head = folder.nodes[folder.nodes["direction"]["input"][0]]
    for place in (1, 2):
        folder.change(head["input"][place], lambda w: w[..., ::-1])


def other_mean(folder: Folder) -> None:
    subtraction = next(n for n in folder.nodes.values() if n["op"] == "Sub")
    folder.change(subtraction["input"][1], lambda m: m - 3.0)


DEFECTS = [
    FolderDefect("dilation 2 to 1", undilate, "fusion16.project_f1", "dilation"),
    FolderDefect("dropped bias", drop_bias, "low.stage5.1.layers.0", "dropped bias"),
    FolderDefect("Relu6 to Relu", raise_clip, "low.stage5.2.layers.2", "clip bound"),
    FolderDefect("align_corners", align_corners, "fusion8.upsample", "corner alignment"),
    FolderDefect("transposed kernel", transpose_kernel, "fusion8.project_f1", "transposed weight"),
    FolderDefect("SAME padding at stride 2", shift_padding, "low.stage3.0.layers.3", "padding"),
    FolderDefect("stale shard", stale_shard, "low.stage5.3.layers.0", "stale weight"),
    FolderDefect("heads swapped", swap_heads, "output.heads.fgbg", "exchanged outputs"),
    FolderDefect("direction x and y", swap_direction, "output.heads.direction", "channel permutation"),
    FolderDefect("other mean", other_mean, "normalize", "normalization"),
]


def plant_in_folder(path: Path, defect: FolderDefect) -> None:
    folder = Folder(path)
    defect.plant(folder)
    folder.save()
