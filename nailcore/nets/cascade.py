"""The cascade of the paper: a deep branch on the half-size image, a shallow one on the full image."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import nn

from nailcore.nets.encoder import as_encoder, build_encoders
from nailcore.nets.mobilenetv2 import BATCHNORM_EPSILON
from nailcore.variant import OUTPUTS, Variant

Logits = dict[str, torch.Tensor]


def upsample2(x: torch.Tensor) -> torch.Tensor:
    """Bilinear ×2 with half-pixel centres (corners not aligned): every runtime has this one."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class OutputBranch(nn.Module):
    """The three predictions of one level: fgbg (2), finger (10), direction (2) logits."""

    def __init__(self, inputs: int, *, refined: bool) -> None:
        super().__init__()
        # At the finest level a depthwise 3×3 may sharpen what the bilinear upsampling blurred; it is
        # the cheapest spatial operator there is (9 MACs per value).
        self.refine: nn.Module = nn.Identity()
        if refined:
            self.refine = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs, eps=BATCHNORM_EPSILON),
                nn.ReLU6(inplace=True),
            )
        self.heads = nn.ModuleDict({o.name: nn.Conv2d(inputs, o.channels, 1) for o in OUTPUTS})

    def forward(self, x: torch.Tensor) -> Logits:
        """(N, C, h, w) -> named logits (N, channels, h, w)."""
        x = self.refine(x)
        return {name: head(x) for name, head in self.heads.items()}


def _project_f1(inputs: int, width: int, kind: str) -> nn.Module:
    """The dilated 3×3 convolution on the upsampled F1, whole or as depthwise and pointwise."""
    if kind == "dense":
        return nn.Conv2d(inputs, width, 3, padding=2, dilation=2, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=2, dilation=2, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs, eps=BATCHNORM_EPSILON),
        nn.Conv2d(inputs, width, 1, bias=False),
    )


class Fusion(nn.Module):
    """The paper's fusion module: F2' = ReLU(BN(conv3×3 dilation 2 (up2(F1))) + BN(conv1×1(F2)))."""

    def __init__(self, inputs_f1: int, inputs_f2: int, width: int, conv: str = "dense") -> None:
        super().__init__()
        self.project_f1 = _project_f1(inputs_f1, width, conv)
        self.norm_f1 = nn.BatchNorm2d(width, eps=BATCHNORM_EPSILON)
        self.project_f2 = nn.Conv2d(inputs_f2, width, 1, bias=False)
        self.norm_f2 = nn.BatchNorm2d(width, eps=BATCHNORM_EPSILON)
        self.branch = OutputBranch(inputs_f1, refined=False)  # training only

    def forward(self, f1: torch.Tensor, f2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f1 (N, C1, h, w), f2 (N, C2, 2h, 2w) -> F2' (N, width, 2h, 2w) and the upsampled f1."""
        upsampled = upsample2(f1)
        fused = self.norm_f1(self.project_f1(upsampled)) + self.norm_f2(self.project_f2(f2))
        return F.relu(fused), upsampled


class Cascade(nn.Module):
    """Duke et al. 2019, section 3.2. Input: normalised RGB (N, 3, H, W), H and W multiples of 32.

    Free choices (the paper is silent): fusion width, dense or separable F1 convolution, ReLU after the
    sum, last fused map at H/8, logits at H/4 behind one depthwise 3×3. docs/network.md has nail IoU and
    CPU-ms of each, by ``python -m benchmark.decoder_ablation``; what ships stands in the variant.
    """

    def __init__(
        self,
        encoder: str,
        layers: int,
        fusion_width: int,
        fusion_conv: str = "dense",
        heads_stride: int = 4,
    ) -> None:
        super().__init__()
        self.heads_stride = heads_stride
        self.high, self.low = build_encoders(encoder, layers)
        high, low = as_encoder(self.high).channels, as_encoder(self.low).channels
        self.fusion16 = Fusion(low[16], low[8], fusion_width, fusion_conv)  # deep features with low stage 4
        self.fusion8 = Fusion(fusion_width, high[8], fusion_width, fusion_conv)  # ... with high stage 4
        self.output = OutputBranch(fusion_width, refined=True)

    def encoders(self) -> tuple[nn.Module, ...]:
        """The branches that a pretrained backbone initialises."""
        return (self.high, self.low)

    def _fuse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # A 2×2 mean is exactly the half-pixel bilinear resize by one half.
        low = self.low(F.avg_pool2d(x, 2))
        high = self.high(x)
        fused16, up_deep = self.fusion16(low[16], low[8])  # (N, W, H/16, W/16)
        fused8, up16 = self.fusion8(fused16, high[8])  # (N, W, H/8, W/8)
        return fused8, up_deep, up16

    def forward(self, x: torch.Tensor) -> Logits:
        """(N, 3, H, W) -> named logits at H/4."""
        fused8, _, _ = self._fuse(x)
        return self.predict(fused8)

    def predict(self, fused8: torch.Tensor) -> Logits:
        """(N, W, H/8, W/8) -> named logits at H/4: the map is upsampled, or (heads at 8) the logits are."""
        if self.heads_stride == 4:
            logits: Logits = self.output(upsample2(fused8))
            return logits
        return {name: upsample2(value) for name, value in self.output(fused8).items()}

    def forward_levels(self, x: torch.Tensor) -> dict[int, Logits]:
        """Logits of every pyramid level by stride: {4: ..., 8: ..., 16: ...}, for training."""
        fused8, up_deep, up16 = self._fuse(x)
        return {
            4: self.predict(fused8),
            8: self.fusion8.branch(up16),
            16: self.fusion16.branch(up_deep),
        }


def build_cascade(variant: Variant) -> Cascade:
    """An untrained cascade for a variant."""
    return Cascade(
        variant.encoder,
        variant.encoder_layers,
        variant.fusion_width,
        variant.fusion_conv,
        variant.heads_stride,
    )
