"""The cascade without its high-resolution branch: the other half of the paper's ablation, never shipped."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import nn

from nailcore.nets.cascade import Cascade, Fusion, Logits, OutputBranch, upsample2
from nailcore.nets.encoder import as_encoder, build_encoders
from nailcore.variant import Variant


class SingleBranch(Cascade):
    """The deep branch on the half-size image alone; its last fused map (H/16) is upsampled to H/4.

    Everything that does not need the high-resolution image is that of :class:`Cascade`: encoder,
    first fusion module, output branches, supervision at strides 4, 8 and 16.
    """

    def __init__(self, encoder: str, layers: int, fusion_width: int, fusion_conv: str = "dense") -> None:
        super(Cascade, self).__init__()
        self.heads_stride = 4
        _, self.low = build_encoders(encoder, layers)
        low = as_encoder(self.low).channels
        self.fusion16 = Fusion(low[16], low[8], fusion_width, fusion_conv)
        self.branch8 = OutputBranch(fusion_width, refined=False)  # training only
        self.output = OutputBranch(fusion_width, refined=True)

    def encoders(self) -> tuple[nn.Module, ...]:
        """The low branch."""
        return (self.low,)

    def _fuse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        low = self.low(F.avg_pool2d(x, 2))
        fused16, up_deep = self.fusion16(low[16], low[8])  # (N, W, H/16, W/16)
        up16 = upsample2(fused16)
        return up16, up_deep, up16

    def forward_levels(self, x: torch.Tensor) -> dict[int, Logits]:
        """Logits of every pyramid level by stride: {4: ..., 8: ..., 16: ...}, for training."""
        fused8, up_deep, up16 = self._fuse(x)
        return {
            4: self.predict(fused8),
            8: self.branch8(up16),
            16: self.fusion16.branch(up_deep),
        }


def build_single_branch(variant: Variant) -> SingleBranch:
    """An untrained single-branch network for a variant."""
    return SingleBranch(variant.encoder, variant.encoder_layers, variant.fusion_width, variant.fusion_conv)
