"""Interval arithmetic: what each channel of the network can reach at most, whatever image comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nailcore.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nailcore.nets.export_form import ExportForm


@dataclass(frozen=True)
class Interval:
    """Per channel (C,) float64: no value is below ``low`` or above ``high``."""

    low: torch.Tensor
    high: torch.Tensor

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def clamp(self, ceiling: float | None) -> Interval:
        """Behind a ReLU (None) or ReLU6 (6.0)."""
        return Interval(self.low.clamp(0, ceiling), self.high.clamp(0, ceiling))


class _Bounds:
    """Collects the interval of every convolution's output on the way."""

    def __init__(self, network: ExportForm) -> None:
        self.names = {module: name for name, module in network.named_modules()}
        self.found: dict[str, Interval] = {}

    def pass_conv(self, conv: nn.Conv2d, x: Interval) -> Interval:
        """Every tap may meet every value its channel can have, and 0 where padding reaches."""
        weight = conv.weight.double().flatten(2)  # (O, C/groups, taps)
        low, high = x.low, x.high
        if any(conv.padding):
            low, high = low.clamp(max=0), high.clamp(min=0)
        if conv.groups > 1:
            if conv.weight.shape[:2] != (conv.groups, 1):
                raise ConversionError(f"{self.names[conv]}: grouped, but not depthwise.")
            low, high = low[:, None, None], high[:, None, None]
        else:
            low, high = low[None, :, None], high[None, :, None]
        plus, minus = weight.clamp(min=0), weight.clamp(max=0)
        bias = conv.bias.double() if conv.bias is not None else 0.0
        out = Interval(
            (plus * low + minus * high).sum((1, 2)) + bias, (plus * high + minus * low).sum((1, 2)) + bias
        )
        self.found[self.names[conv]] = out
        return out

    def pass_sequence(self, modules: nn.Sequential, x: Interval) -> Interval:
        """Convolutions and ReLU6; BatchNorm is folded."""
        from torch import nn

        for module in modules:
            if isinstance(module, nn.Conv2d):
                x = self.pass_conv(module, x)
            elif isinstance(module, nn.ReLU6):
                x = x.clamp(6.0)
            elif isinstance(module, nn.Sequential):
                x = self.pass_sequence(module, x)
            elif not isinstance(module, nn.Identity):
                raise ConversionError(f"{self.names[module]}: no bounds through {type(module).__name__}.")
        return x

    def pass_branch(self, branch: nn.Module, x: Interval) -> dict[str, Interval]:
        """A MobileNetV2 prefix: the interval behind each stage."""
        behind: dict[str, Interval] = {}
        for name, stage in branch.named_children():
            for block in [stage] if name == "stage1" else stage.children():
                if name == "stage1":
                    x = self.pass_sequence(block, x)  # type: ignore[arg-type]
                    continue
                y = self.pass_sequence(block.get_submodule("layers"), x)  # type: ignore[arg-type]
                x = x + y if getattr(block, "residual", False) else y
            behind[name] = x
        return behind

    def pass_fusion(self, fusion: nn.Module, f1: Interval, f2: Interval) -> Interval:
        """Bilinear upsampling stays within its input's interval."""
        from torch import nn

        project = fusion.get_submodule("project_f1")
        deep = (
            self.pass_conv(project, f1) if isinstance(project, nn.Conv2d) else self.pass_sequence(project, f1)  # type: ignore[arg-type]
        )
        return (deep + self.pass_conv(fusion.get_submodule("project_f2"), f2)).clamp(None)  # type: ignore[arg-type]


def bound_convolutions(network: ExportForm) -> dict[str, Interval]:
    """Interval of every convolution's output, before its activation, by torch name.

    Holds for every image in 0..255, not only for photographs; much wider than what photographs reach.

    Raises:
        ConversionError: the network holds a module that nothing is known about.
    """
    import torch
    from torch import nn

    bounds = _Bounds(network)
    core = network.network
    with torch.inference_mode():
        mean = network.mean.double().flatten()
        image = Interval(-mean, 255 - mean)
        high, low = bounds.pass_branch(core.high, image), bounds.pass_branch(core.low, image)
        fused = bounds.pass_fusion(core.fusion16, low[list(low)[-1]], low["stage4"])
        fused = bounds.pass_fusion(core.fusion8, fused, high["stage4"])
        refine = core.output.refine
        x = fused if isinstance(refine, nn.Identity) else bounds.pass_sequence(refine, fused)  # type: ignore[arg-type]
        for head in core.output.heads.values():
            bounds.pass_conv(head, x)  # type: ignore[arg-type]
    return bounds.found
