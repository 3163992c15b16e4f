"""Which torch step each layer of a model file stands for, whatever converter wrote the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from benchmark.torch_graph import TorchGraph, TorchNode
from nailcore.errors import ArtifactError
from nailcore.runtime import Layer, Tracer

F32 = npt.NDArray[np.float32]

# Every format's own word, in lower case without punctuation -> what it does. "same" keeps the values,
# "tail" finishes a convolution that a converter split, "pass" changes a shape or a number format.
_KINDS = {
    "conv": "conv conv2d fusedconv2d depthwiseconv2d depthwiseconv2dnative fuseddepthwiseconv2dnative "
    "fuseddepthwiseconv2d qlinearconv",
    "clip": "clip relu6 clipbyvalue hardtanh relun1to1 relu0to1",
    "relu": "relu",
    "add": "add addv2 addn",
    "sub": "sub",
    "mul": "mul realdiv div truediv",
    "resize": "resize upsample upsamplebilinear resizebilinear resizenearestneighbor upsamplenearestneighbor",
    "pool": "averagepool avgpool averagepool2d maxpool maxpool2d",
    "tail": "biasadd batchtospacend batchnormalization batchnorm fusedbatchnormv3",
    "same": "identity cast noop dequantizelinear dequantize copy",
    "pass": "pad padv2 mirrorpad spacetobatchnd transpose reshape squeeze expanddims quantizelinear quantize",
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_STANDS_FOR = {"clip": ("clip", "relu"), "relu": ("relu", "clip")}
_GAP = 0.9  # cost of leaving one convolution out of the alignment; a clean pair costs 0
_MIN_ALIGNED = 0.5  # of the torch convolutions, or the file is of another network


def kind_of(layer: Layer) -> str:
    """What a layer does, in words common to all formats; "other" when unknown."""
    kind = _KIND_OF.get(re.sub(r"[^a-z0-9]", "", layer.op.lower()), "other")
    return kind if kind != "add" or len(layer.inputs) > 1 else "tail"  # an add of a constant is a bias


@dataclass(frozen=True)
class Point:
    """A tensor of the file that must equal a tensor of the network."""

    layer: Layer
    kind: str
    node: str  # torch node whose value it must hold
    instead: str = ""  # torch node it would hold if an activation were missing from the file
    core: str = ""  # name of the convolution layer when the point closes a split one
    via: tuple[Layer, ...] = ()  # layers inside the same step: Pad, SpaceToBatchND, Quantize, ...

    @property
    def kernel_is_whole(self) -> bool:
        """The convolution's kernel is the step's: no factor or BatchNorm stands beside it in the file."""
        beside = [layer for layer in (*self.via, self.layer) if layer.name != self.core]
        kinds = {kind_of(layer) for layer in beside} - {"pass", "same"}
        return kinds <= {"tail"} and not any("norm" in layer.op.lower() for layer in beside)


@dataclass
class LayerMap:
    """The alignment of one file with the network."""

    points: list[Point]  # in the file's order of execution
    tensors: dict[str, str]  # file tensor -> torch node, image included
    convolutions: dict[str, str]  # torch node -> layer name
    unmatched: list[str] = field(default_factory=list)  # torch modules without a layer


def map_layers(
    tracer: Tracer, graph: TorchGraph, output_names: Mapping[str, str], input_name: str
) -> LayerMap:
    """Align the layers of a file with the steps of the network.

    Convolutions first, by dynamic programming over one canonical order of both graphs (kernel shapes and
    weights decide, so one broken layer does not shift the others); the rest follows from the data flow.

    Args:
        tracer: the opened file.
        graph: the network.
        output_names: our output name -> tensor name in the file.
        input_name: name of the image tensor in the file.

    Raises:
        ArtifactError: the file is of another network.
    """
    layers = {layer.name: layer for layer in tracer.list_layers()}
    theirs = _order_layers(layers, output_names.values())
    ours = _order_nodes(graph)
    weights = {layer.name: tracer.read_weight(layer.name) for layer in theirs}
    pairs = _align(theirs, ours, weights)
    if len(pairs) < _MIN_ALIGNED * len(ours):
        raise ArtifactError(
            f"Only {len(pairs)} of the network's {len(ours)} convolutions have a counterpart in the file.",
            hint="It seems to be a file of another network: check which variant it was built for.",
        )
    _unswap_siblings(pairs, layers, {node.name: node for node in ours}, weights)
    return _Walk(layers, graph, pairs, input_name).finish()


def _order_layers(layers: Mapping[str, Layer], outputs: Iterable[str]) -> list[Layer]:
    """Convolutions in canonical order."""
    sources = {name: layer.inputs for name, layer in layers.items()}
    read = {source for layer in layers.values() for source in layer.inputs}
    # Formats that only rename a tensor for an output list no layer of that name: start at all ends.
    ends = dict.fromkeys(
        [*(name for name in outputs if name in layers), *(n for n in layers if n not in read)]
    )
    return [layers[n] for n in _canonical_order(sources, list(ends)) if kind_of(layers[n]) == "conv"]


def _order_nodes(graph: TorchGraph) -> list[TorchNode]:
    sources = {name: node.inputs for name, node in graph.nodes.items()}
    order = _canonical_order(sources, list(graph.outputs.values()))
    return [graph.nodes[name] for name in order if graph.nodes[name].kind == "conv"]


def _canonical_order(sources: Mapping[str, Sequence[str]], outputs: Sequence[str]) -> list[str]:
    """Depth first from the outputs, the deepest operand first: free of the file's own order."""
    depth: dict[str, int] = {}
    for name in _walk(sources, outputs, None):
        depth[name] = 1 + max((depth.get(source, 0) for source in sources[name]), default=0)
    return list(_walk(sources, outputs, depth))


def _walk(
    sources: Mapping[str, Sequence[str]], outputs: Sequence[str], depth: Mapping[str, int] | None
) -> Iterator[str]:
    seen: set[str] = set()
    waiting = [(name, False) for name in reversed(outputs)]
    while waiting:
        name, ready = waiting.pop()
        if name not in sources or (name in seen and not ready):
            continue
        if ready:
            yield name
            continue
        seen.add(name)
        waiting.append((name, True))
        inputs = list(sources[name])
        if depth is not None:
            inputs.sort(key=lambda source: -depth.get(source, 0))
        waiting.extend((source, False) for source in reversed(inputs))


def _pair_cost(weight: F32 | None, node: TorchNode) -> float:
    """0 for the same kernel, up to 0.5 for another of its shape; two gaps when it cannot be the layer."""
    ours = node.parameters["weight"].numpy()
    if weight is None:
        return 0.25
    if weight.shape != ours.shape:
        transposed = sorted(weight.shape) == sorted(ours.shape)
        return 0.7 if transposed else 2.0 * _GAP
    return 0.5 * min(1.0, relative_distance(weight, ours))


def relative_distance(found: F32, expected: F32) -> float:
    """L2 norm of the difference over the L2 norm of what is expected; infinite for NaN."""
    scale = float(np.linalg.norm(expected)) or 1.0
    distance = float(np.linalg.norm(found.astype(np.float64) - expected)) / scale
    return distance if np.isfinite(distance) else np.inf


def _align(
    theirs: Sequence[Layer], ours: Sequence[TorchNode], weights: Mapping[str, F32 | None]
) -> dict[str, str]:
    """Cheapest monotone alignment (Needleman and Wunsch): torch node -> layer name."""
    rows, columns = len(theirs), len(ours)
    pair = np.array([[_pair_cost(weights[a.name], b) for b in ours] for a in theirs]).reshape(rows, columns)
    cost = np.zeros((rows + 1, columns + 1))
    cost[:, 0] = _GAP * np.arange(rows + 1)
    cost[0, :] = _GAP * np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            gap = min(cost[i - 1, j], cost[i, j - 1]) + _GAP
            cost[i, j] = min(cost[i - 1, j - 1] + pair[i - 1, j - 1], gap)
    pairs: dict[str, str] = {}
    i, j = rows, columns
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + pair[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs[ours[j].name] = theirs[i].name
        elif cost[i, j] == cost[i - 1, j] + _GAP:
            i -= 1
        else:
            j -= 1
    left = [layer.name for layer in theirs if layer.name not in pairs.values()]
    _pair_rest(
        pairs, left, [(a.name, b.name, pair[i, j]) for i, a in enumerate(theirs) for j, b in enumerate(ours)]
    )
    return pairs


def _pair_rest(pairs: dict[str, str], left: list[str], costs: Sequence[tuple[str, str, float]]) -> None:
    """Convolutions that stand in another order than the network's (heads): the cheapest pairs first."""
    for layer, node, cost in sorted(costs, key=lambda each: each[2]):
        if cost < 2 * _GAP and layer in left and node not in pairs:
            pairs[node] = layer
            left.remove(layer)


def _unswap_siblings(
    pairs: dict[str, str],
    layers: Mapping[str, Layer],
    nodes: Mapping[str, TorchNode],
    weights: Mapping[str, F32 | None],
) -> None:
    """Convolutions of one shape that read one tensor are told apart by their weights, not by their names.

    Otherwise two exchanged heads would look like two layers with foreign weights.
    """
    matched = [name for name in pairs if name in nodes]
    for place, a in enumerate(matched):
        for b in matched[place + 1 :]:
            if nodes[a].inputs != nodes[b].inputs or nodes[a].shape != nodes[b].shape:
                continue
            one, two = pairs[a], pairs[b]
            if layers[one].inputs != layers[two].inputs:
                continue
            kept = _pair_cost(weights[one], nodes[a]) + _pair_cost(weights[two], nodes[b])
            swapped = _pair_cost(weights[two], nodes[a]) + _pair_cost(weights[one], nodes[b])
            if swapped < kept:
                pairs[a], pairs[b] = two, one


class _Walk:
    """Follows the data through the file, layer by layer, and through the network beside it."""

    def __init__(
        self, layers: Mapping[str, Layer], graph: TorchGraph, pairs: Mapping[str, str], input_name: str
    ) -> None:
        self.layers = layers
        self.graph = graph
        self.pairs = pairs
        self.node_of = {layer: node for node, layer in pairs.items()}
        image = next(node.name for node in graph.nodes.values() if node.kind == "input")
        # Whatever no layer writes is the image, under the name the format gives it inside the file.
        read = {source for layer in layers.values() for source in layer.inputs}
        self.tensors = dict.fromkeys([input_name, *sorted(read - set(layers))], image)
        self.inner: dict[str, tuple[Layer, ...]] = {}  # unfinished tensors and the layers they crossed
        self.open_conv: dict[str, tuple[str, str]] = {}  # unfinished convolution: (torch node, layer)
        self.claimed: set[str] = set()
        self.points: list[Point] = []
        self.consumers: dict[str, list[Layer]] = {}
        for layer in layers.values():
            for source in layer.inputs:
                self.consumers.setdefault(source, []).append(layer)

    def finish(self) -> LayerMap:
        for layer in self.layers.values():
            self._visit(layer)
        computed = [n for n in self.graph.nodes.values() if n.kind == "conv" and n.name not in self.pairs]
        return LayerMap(self.points, self.tensors, dict(self.pairs), [n.module for n in computed])

    def _visit(self, layer: Layer) -> None:
        kind = kind_of(layer)
        if layer.name in self.node_of:
            self._close_conv(layer, self.node_of[layer.name], layer.name)
        elif kind == "tail" and layer.inputs and layer.inputs[0] in self.open_conv:
            node, core = self.open_conv[layer.inputs[0]]
            self._close_conv(layer, node, core)
        elif kind == "same" and layer.inputs and layer.inputs[0] in self.tensors:
            self._put(layer, "same", self.tensors[layer.inputs[0]])
        else:
            node = self._find_step(layer, kind) if kind not in ("pass", "same", "conv", "mul") else ""
            if node:
                self._close(layer, kind, node)
            else:
                self.inner[layer.name] = (*self._crossed(layer), layer)

    def _crossed(self, layer: Layer) -> tuple[Layer, ...]:
        found: dict[str, Layer] = {}
        for source in layer.inputs:
            found.update({each.name: each for each in self.inner.get(source, ())})
        return tuple(found.values())

    def _origins(self, layer: Layer) -> list[str]:
        """Torch nodes the layer's inputs stand for, seen through unfinished tensors."""
        found: list[str] = []
        for source in layer.inputs:
            name: str | None = source
            while name is not None and name not in self.tensors:
                inputs = self.layers[name].inputs if name in self.layers else ()
                name = inputs[0] if inputs else None
            if name is not None:
                found.append(self.tensors[name])
        return found

    def _find_step(self, layer: Layer, kind: str) -> str:
        """The nearest unclaimed torch step of this kind below the layer's inputs; "" when there is none."""
        wanted = _STANDS_FOR.get(kind, (kind,))
        if kind == "tail":  # an addition of a constant that follows no convolution
            wanted = ("sub",)
        distances = [self._reach(origin) for origin in self._origins(layer)]
        best, nearest = "", np.inf
        for node in self.graph.nodes.values():
            if node.kind not in wanted or node.name in self.claimed:
                continue
            reached = [distance[node.name] for distance in distances if node.name in distance]
            if reached:
                far = sum(reached) + 100.0 * (len(distances) - len(reached)) + wanted.index(node.kind)
                if far < nearest:
                    best, nearest = node.name, far
        return best

    def _reach(self, origin: str) -> dict[str, int]:
        """Torch nodes below one, by steps, not crossing a convolution that has a layer of its own."""
        distance = {origin: 0}
        waiting = [origin]
        while waiting:
            name = waiting.pop(0)
            for user in self.graph.users[name]:
                if user not in distance and user not in self.pairs:
                    distance[user] = distance[name] + 1
                    waiting.append(user)
        return distance

    def _close_conv(self, layer: Layer, node: str, core: str) -> None:
        followers = self.consumers.get(layer.name, [])
        split = len(followers) == 1 and kind_of(followers[0]) == "tail" and len(followers[0].inputs) == 1
        if split:
            self.open_conv[layer.name] = (node, core)
            self.inner[layer.name] = (*self._crossed(layer), layer)
        else:
            self._close(layer, "conv", node, core)

    def _close(self, layer: Layer, kind: str, node: str, core: str = "") -> None:
        """End a step at this layer, or at the activation after it when the layer must contain that too."""
        users = self.graph.users[node]
        follower = self.graph.nodes[users[0]] if len(users) == 1 else None
        fused = (
            follower is not None
            and kind in ("conv", "add")
            and follower.kind in ("clip", "relu")
            and not self._activated_later(layer.name)
        )
        if fused and follower is not None:
            self.claimed.add(node)
            self._put(layer, kind, follower.name, instead=node, core=core)
        else:
            self._put(layer, kind, node, core=core)

    def _activated_later(self, tensor: str) -> bool:
        for layer in self.consumers.get(tensor, []):
            kind = kind_of(layer)
            if kind in ("clip", "relu"):
                return True
            if kind in ("same", "pass") and self._activated_later(layer.name):
                return True
        return False

    def _put(self, layer: Layer, kind: str, node: str, *, instead: str = "", core: str = "") -> None:
        self.claimed.add(node)
        self.tensors[layer.name] = node
        self.points.append(Point(layer, kind, node, instead, core, self._crossed(layer)))
