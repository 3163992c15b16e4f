"""The export form: heads of training stripped, BatchNorm folded, normalisation inside the graph."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nailcore.nets.cascade import Cascade
from nailcore.nets.weights import load_weights
from nailcore.variant import Variant


def fold_batchnorm(module: nn.Module) -> None:
    """Fold every BatchNorm into the convolution that precedes it, in place (eval mode only)."""
    for child in module.children():
        fold_batchnorm(child)
    names = list(module._modules)
    for conv_name, norm_name in itertools.pairwise(names):
        conv, norm = module._modules[conv_name], module._modules[norm_name]
        owner, key = module, conv_name
        if isinstance(conv, nn.Sequential) and isinstance(norm, nn.BatchNorm2d):
            # A separable convolution: the norm behind it belongs to its last part.
            owner, key = conv, list(conv._modules)[-1]
            conv = owner._modules[key]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            owner._modules[key] = fuse_conv_bn_eval(conv, norm)
            module._modules[norm_name] = nn.Identity()


class ExportForm(nn.Module):
    """What every target converts and parity compares with.

    Input: (N, 3, H, W) float32 RGB in 0..255. Output: a tuple of logits in the order of
    ``variant.outputs``. The division by ``std`` is folded into the two first convolutions; the
    subtraction of ``mean`` is not: their zero padding would no longer be the image's mean.
    """

    mean: torch.Tensor

    def __init__(self, network: Cascade, variant: Variant) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval()
        for fusion in (network.fusion16, network.fusion8):
            del fusion.branch
        fold_batchnorm(network)
        std = torch.tensor(variant.std).view(1, 3, 1, 1)
        with torch.no_grad():
            for branch in (network.high, network.low):
                first = next(m for m in branch.modules() if isinstance(m, nn.Conv2d))
                first.weight.div_(std)
        self.network = network
        self.names = tuple(output.name for output in variant.outputs)
        self.register_buffer("mean", torch.tensor(variant.mean).view(1, 3, 1, 1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) RGB 0..255 -> logits (N, C, H/4, W/4) in the order of ``self.names``."""
        fused8, _, _ = self.network._fuse(image - self.mean)
        logits = self.network.predict(fused8)
        return tuple(logits[name] for name in self.names)


def load_network(variant: Variant, weights: Path) -> ExportForm:
    """The trained network of a variant in export form; raises WeightsError (see load_weights)."""
    return ExportForm(load_weights(variant, weights), variant).eval()
