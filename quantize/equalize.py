"""Cross-layer equalization: channels that use few of a tensor's levels are scaled up, and down again behind.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1; the
scales here are chosen for the activations, because weights have a scale per output channel anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError
from quantize.bounds import bound_convolutions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nailcore.nets.export_form import ExportForm

Activation = Literal["none", "relu", "relu6"]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
CEILING = 6.0  # of ReLU6
MAX_SCALE = 64.0
STRENGTH = 0.5  # 1 fills every channel's range, and leaves the kernel behind it unequal columns


@dataclass(frozen=True)
class Link:
    """A tensor whose channels may be scaled: who writes it, through which activation, and who reads it.

    Several writers' outputs are added. All names are of convolutions, as torch calls them.
    """

    writers: tuple[str, ...]
    activation: Activation
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the manifest calls it: its last writer."""
        return self.writers[-1]


def list_links(network: ExportForm) -> list[Link]:
    """Every link of the cascade in which scaling channels can leave the function as it is."""
    from torch import nn

    links: list[Link] = []
    core = network.network
    ends: dict[str, dict[str, tuple[str, ...]]] = {}
    last = {branch: _list_stages(getattr(core, branch))[-1] for branch in ("high", "low")}
    ends["high"] = {"stage4": ("fusion8.project_f2",)}
    ends["low"] = {"stage4": ("fusion16.project_f2",)}
    ends["low"][last["low"]] = (*ends["low"].get(last["low"], ()), "fusion16.project_f1")
    for branch in ("high", "low"):
        links += _list_branch(getattr(core, branch), branch, ends[branch])
    plain = isinstance(core.fusion16.project_f1, nn.Conv2d)
    if plain:
        for fusion, reader in (("fusion16", "fusion8.project_f1"), ("fusion8", "output.refine.0")):
            links.append(Link((f"{fusion}.project_f1", f"{fusion}.project_f2"), "relu", (reader,)))
    heads = tuple(f"output.heads.{name}" for name in network.names)
    if not isinstance(core.output.refine, nn.Identity):
        links.append(Link(("output.refine.0",), "relu6", heads))
    if not plain:
        links = [link for link in links if "fusion16.project_f1" not in link.readers]

    def full(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(f"network.{name}" for name in names)

    return [Link(full(link.writers), link.activation, full(link.readers)) for link in links]


def _list_stages(branch: nn.Module) -> list[str]:
    return [name for name, _ in branch.named_children()]


def _list_branch(branch: nn.Module, path: str, ends: Mapping[str, tuple[str, ...]]) -> list[Link]:
    """Links of one MobileNetV2 prefix; ``ends``: stage -> readers outside the branch."""
    from torch import nn

    links: list[Link] = []
    stages = _list_stages(branch)
    firsts: dict[str, str] = {}
    projects: dict[str, list[str]] = {}
    inner: dict[str, list[str]] = {}
    for stage in stages[1:]:
        projects[stage], inner[stage] = [], []
        for block, module in branch.get_submodule(stage).named_children():
            layers = module.get_submodule("layers").named_children()
            convs = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
            names = [f"{path}.{stage}.{block}.layers.{name}" for name in convs]
            links += [Link((a,), "relu6", (b,)) for a, b in itertools.pairwise(names)]
            if block == "0":
                firsts[stage] = names[0]
            else:
                inner[stage].append(names[0])
            projects[stage].append(names[-1])
    links.append(Link((f"{path}.{stages[0]}.0",), "relu6", (firsts[stages[1]],)))
    for stage, following in zip(stages[1:], [*stages[2:], ""], strict=True):
        readers = (*inner[stage], *((firsts[following],) if following else ()), *ends.get(stage, ()))
        links.append(Link(tuple(projects[stage]), "none", readers))
    return links


def measure_reach(
    network: ExportForm, links: Iterable[Link], images: npt.NDArray[np.uint8]
) -> dict[str, F32]:
    """Per link, the largest magnitude (C,) its channels have behind their activation, one image at a time.

    Args:
        images: calibration images (N, H, W, 3) uint8 RGB.
    """
    import torch

    reach: dict[str, torch.Tensor] = {}

    def watch(link: Link) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            most = inputs[0].abs().amax((0, 2, 3))
            reach[link.name] = torch.maximum(reach.get(link.name, most), most)

        return hook

    handles = [
        network.get_submodule(link.readers[0]).register_forward_pre_hook(watch(link)) for link in links
    ]
    try:
        with torch.inference_mode():
            for image in images:
                network(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).float())
    finally:
        for handle in handles:
            handle.remove()
    return {name: most.numpy() for name, most in reach.items()}


def choose_scales(link: Link, reach: F32, ceiling: F64, strength: float = STRENGTH) -> F32:
    """(C,) factors of at least 1 that bring small channels towards the largest one.

    Args:
        link: the tensor.
        reach: (C,) what the channels hold on calibration images.
        ceiling: (C,) what they can reach at most, before the activation, whatever the image. Behind a ReLU6 a
            factor s is exact only where the channel stays below 6 / s: none is larger than 6 / ceiling.
        strength: 0: none; 1: every channel fills the tensor's range.
    """
    top = float(reach.max())
    # A channel that is silent on every image has nothing to gain, and its factor would be noise.
    silent = reach < 1e-4 * top
    scales = np.where(silent, 1.0, (top / np.where(silent, 1.0, reach)) ** strength)
    if link.activation == "relu6":
        # The sum of rounded terms may exceed the bound by a rounding.
        scales = np.minimum(scales, CEILING / np.maximum(ceiling, 1e-12) * (1 - 1e-6))
    return np.clip(scales, 1.0, MAX_SCALE).astype(np.float32)


def check_guard(link: Link, scales: F32, ceiling: F64) -> None:
    """Raises ConversionError when a scaled channel could meet a ReLU6's ceiling otherwise than before."""
    if link.activation != "relu6":
        return
    broken = np.flatnonzero((scales < 1) | ((scales > 1) & (ceiling * scales > CEILING)))
    if broken.size:
        channel = int(broken[0])
        raise ConversionError(
            f"{link.name}: channel {channel} can reach {ceiling[channel]:.3g}; scaled by "
            f"{scales[channel]:.3g}, the ReLU6 behind it would clip it elsewhere ({broken.size} channels).",
            hint="Scale a channel behind a ReLU6 up only, and only as far as it stays below 6.",
        )


def scale_link(network: ExportForm, link: Link, scales: F32) -> None:
    """Multiply the link's channels where they are written, divide them where they are read, in place."""
    import torch

    factor = torch.from_numpy(scales)
    with torch.no_grad():
        for name in link.writers:
            conv = _find_conv(network, name)
            conv.weight.mul_(factor.view(-1, 1, 1, 1))
            if conv.bias is not None:
                conv.bias.mul_(factor)
        for name in link.readers:
            conv = _find_conv(network, name)
            depthwise = conv.groups > 1
            conv.weight.div_(factor.view((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))


def _find_conv(network: ExportForm, name: str) -> nn.Conv2d:
    from torch import nn

    conv = network.get_submodule(name)
    if not isinstance(conv, nn.Conv2d):
        raise ConversionError(f"{name}: expected a convolution, found {type(conv).__name__}.")
    return conv


def equalize_layers(
    network: ExportForm, images: npt.NDArray[np.uint8], strength: float = STRENGTH
) -> dict[str, Any]:
    """Equalize every link, in place; what the network computes stays the same, proven for every image.

    Args:
        network: in export form.
        images: calibration images (N, H, W, 3) uint8 RGB of any one size.
        strength: see ``choose_scales``.

    Returns:
        for the manifest: links, channels scaled, largest factor.

    Raises:
        ConversionError: a scaled channel could meet a ReLU6's ceiling.
    """
    links = list_links(network)
    reach, bounds = measure_reach(network, links, images), bound_convolutions(network)
    scaled, largest = 0, 1.0
    for link in links:
        ceiling = bounds[link.name].high.numpy()
        scales = choose_scales(link, reach[link.name], ceiling, strength)
        check_guard(link, scales, ceiling)
        scale_link(network, link, scales)
        scaled += int((scales > 1.0).sum())
        largest = max(largest, float(scales.max()))
    return {"links": len(links), "channels_scaled": scaled, "largest_factor": round(largest, 3)}
