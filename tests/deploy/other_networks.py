"""Other people's segmentation networks, small: the blocks of the originals at widths that run in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import Tensor, nn


def conv_bn(
    c_in: int, c_out: int, k: int = 3, act: type[nn.Module] | None = nn.ReLU, **conv: Any
) -> nn.Module:
    """Convolution, batch norm with statistics that are not trivial, activation."""
    padding = conv.get("dilation", 1) * (k - 1) // 2
    norm = nn.BatchNorm2d(c_out)
    with torch.no_grad():
        norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.uniform_(-0.2, 0.2)
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, k, padding=padding, bias=False, **conv), norm]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Channel attention as in MobileNetV3 (hard sigmoid) and EfficientNet (sigmoid)."""

    def __init__(self, channels: int, gate: type[nn.Module], act: type[nn.Module]) -> None:
        super().__init__()
        squeezed = max(4, channels // 4)
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            act(),
            nn.Conv2d(squeezed, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.body(x)
        return x * scale


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-excite, project."""

    def __init__(
        self, c_in: int, c_out: int, k: int, act: type[nn.Module], gate: type[nn.Module] | None, **conv: Any
    ) -> None:
        super().__init__()
        wide = c_in * 3
        blocks = [conv_bn(c_in, wide, 1, act), conv_bn(wide, wide, k, act, groups=wide, **conv)]
        if gate is not None:
            blocks.append(SqueezeExcite(wide, gate, nn.ReLU if gate is nn.Hardsigmoid else act))
        self.body = nn.Sequential(*blocks, conv_bn(wide, c_out, 1, None))
        self.skip = c_in == c_out and conv.get("stride", 1) == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.skip else y


class LiteRasppMobileNetV3(nn.Module):
    """LR-ASPP on a MobileNetV3 encoder: hard-swish, hard-sigmoid gates, bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        swish, gate = nn.Hardswish, nn.Hardsigmoid
        self.stem = conv_bn(3, 8, 3, swish, stride=2)
        self.low = InvertedResidual(8, 12, 3, nn.ReLU, gate, stride=2)
        self.high = nn.Sequential(
            InvertedResidual(12, 16, 5, swish, gate, stride=2),
            InvertedResidual(16, 16, 5, swish, gate, dilation=2),
            conv_bn(16, 48, 1, swish),
        )
        self.cbr = conv_bn(48, 24, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 24, 1, bias=False), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(12, 5, 1)
        self.high_classifier = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(self.stem(x))
        high = self.high(low)
        y = self.cbr(high) * self.scale(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.low_classifier(low) + self.high_classifier(y)
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class DeepLabV3(nn.Module):
    """Residual encoder with max pooling, ASPP with image pooling, bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 12, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        self.conv1, self.conv2 = conv_bn(12, 12), conv_bn(12, 12, 3, None)
        self.down = conv_bn(12, 24, 3, stride=2)
        self.branches = nn.ModuleList([conv_bn(24, 8, 1), *(conv_bn(24, 8, 3, dilation=d) for d in (2, 4))])
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(24, 8, 1))
        self.project = conv_bn(32, 16, 1)
        self.head = nn.Sequential(conv_bn(16, 16), nn.Dropout(0.1), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.down(F.relu(y + self.conv2(self.conv1(y))))
        pooled = F.interpolate(self.pooling(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.head(self.project(torch.cat([*(branch(y) for branch in self.branches), pooled], 1)))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Two levels, transposed convolutions, concatenation, group and instance norm, leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = self._block(3, 8, nn.GroupNorm(4, 8))
        self.enc2 = self._block(8, 16, nn.InstanceNorm2d(16, affine=True))
        self.bottom = self._block(16, 24, nn.GroupNorm(3, 24))
        self.up2 = nn.ConvTranspose2d(24, 16, 2, 2)
        self.dec2 = self._block(32, 16, nn.InstanceNorm2d(16))
        self.up1 = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1)
        self.dec1 = self._block(16, 8, nn.GroupNorm(2, 8))
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(c_in: int, c_out: int, norm: nn.Module) -> nn.Module:
        return nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(c_in, c_out, 3),
            norm,
            nn.LeakyReLU(0.1),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(F.max_pool2d(one, 2))
        y = self.up2(self.bottom(F.max_pool2d(two, 2, ceil_mode=True)))
        y = self.dec2(torch.cat([y, two], 1))
        y = self.dec1(torch.cat([self.up1(y), one], 1))
        result: Tensor = self.head(y)
        return result


class Attention(nn.Module):
    """SegFormer's attention: keys and values from a spatially reduced map."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.project = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n, count, dim = x.shape
        size = dim // self.heads
        q = self.q(x).reshape(n, count, self.heads, size).permute(0, 2, 1, 3)
        y = x.permute(0, 2, 1).reshape(n, dim, height, width)
        y = self.norm(self.reduce(y).reshape(n, dim, -1).permute(0, 2, 1))
        k, v = self.kv(y).reshape(n, -1, 2, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1)
        result: Tensor = self.project((weights @ v).transpose(1, 2).reshape(n, count, dim))
        return result


class SegFormer(nn.Module):
    """Overlapping patches, reduced attention, mix-FFN with a depthwise convolution, MLP decoder."""

    def __init__(self) -> None:
        super().__init__()
        dims = (16, 24)
        self.patch = nn.ModuleList([nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 24, 3, 2, 1)])
        self.norms = nn.ModuleList([nn.LayerNorm(d) for d in dims])
        self.attention = nn.ModuleList([Attention(16, 2, 4), Attention(24, 3, 2)])
        self.norms2 = nn.ModuleList([nn.LayerNorm(d) for d in dims])
        self.fc1 = nn.ModuleList([nn.Linear(d, 2 * d) for d in dims])
        self.depthwise = nn.ModuleList([nn.Conv2d(2 * d, 2 * d, 3, padding=1, groups=2 * d) for d in dims])
        self.fc2 = nn.ModuleList([nn.Linear(2 * d, d) for d in dims])
        self.decode = nn.ModuleList([nn.Linear(d, 16) for d in dims])
        self.fuse, self.head = conv_bn(32, 16, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for i, patch in enumerate(self.patch):
            x = patch(x)
            n, dim, height, width = x.shape
            t = x.flatten(2).transpose(1, 2)
            t = t + self.attention[i](self.norms[i](t), height, width)
            wide = self.fc1[i](self.norms2[i](t))
            wide = self.depthwise[i](wide.transpose(1, 2).reshape(n, 2 * dim, height, width))
            t = t + self.fc2[i](F.gelu(wide.flatten(2).transpose(1, 2)))
            x = t.transpose(1, 2).reshape(n, dim, height, width)
            decoded = self.decode[i](t).transpose(1, 2).reshape(n, 16, height, width)
            size = maps[0].shape[-2:] if maps else (height, width)
            maps.append(F.interpolate(decoded, size=size, mode="bilinear", align_corners=False))
        result: Tensor = self.head(self.fuse(torch.cat(maps, 1)))
        return result


class HighResolutionNet(nn.Module):
    """HRNet's exchange between resolutions: strided convolutions down, nearest upsampling up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12, 3, stride=2)
        self.split = conv_bn(12, 20, 3, stride=2)
        self.high, self.low = conv_bn(12, 12), conv_bn(20, 20)
        self.up, self.down = conv_bn(20, 12, 1, None), conv_bn(12, 20, 3, None, stride=2)
        self.head = nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high = self.stem(x)
        low = self.split(high)
        high, low = self.high(high), self.low(low)
        fused = F.relu(high + F.interpolate(self.up(low), scale_factor=2.0, mode="nearest"))
        low = F.relu(low + self.down(high))
        both = torch.cat(
            [fused, F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=True)], 1
        )
        logits = self.head(both)
        return logits, logits.argmax(1).to(torch.int32)


class ENet(nn.Module):
    """Initial block, PReLU bottlenecks, dilated and asymmetric convolutions, sub-pixel decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.initial = nn.Conv2d(3, 13, 3, 2, 1)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.PReLU(16)
        self.reduce = nn.Conv2d(16, 8, 2, 2)
        self.asymmetric = nn.Sequential(
            nn.Conv2d(8, 8, (5, 1), padding=(2, 0)), nn.Conv2d(8, 8, (1, 5), padding=(0, 2))
        )
        self.dilated = nn.Conv2d(8, 8, 3, padding=4, dilation=4)
        self.expand, self.act2 = nn.Conv2d(8, 32, 1), nn.PReLU()
        self.decode = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1),
            nn.PixelShuffle(2),
            nn.ELU(),
            nn.Conv2d(8, 12, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(torch.cat([self.initial(x), F.max_pool2d(x, 2, 2)], 1)))
        z = self.dilated(self.asymmetric(self.reduce(y)))
        skip = F.pad(F.max_pool2d(y, 2, 2), (0, 0, 0, 0, 0, 16))
        result: Tensor = self.decode(self.act2(self.expand(z) + skip))
        return result


class EfficientPyramid(nn.Module):
    """EfficientNet blocks (SiLU, squeeze-excite) under a feature pyramid and a pyramid-pooling head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, nn.SiLU, stride=2)
        self.c2 = InvertedResidual(8, 12, 3, nn.SiLU, nn.Sigmoid, stride=2)
        self.c3 = InvertedResidual(12, 20, 5, nn.SiLU, nn.Sigmoid, stride=2)
        self.lateral2, self.lateral3 = nn.Conv2d(12, 16, 1), nn.Conv2d(20, 16, 1)
        self.pools = nn.ModuleList([nn.Sequential(nn.AvgPool2d(k, k), nn.Conv2d(16, 4, 1)) for k in (2, 4)])
        self.head = nn.Conv2d(24, 3, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        c2 = self.c2(self.stem(x))
        p3 = self.lateral3(self.c3(c2))
        p2 = self.lateral2(c2) + F.interpolate(p3, size=c2.shape[-2:], mode="nearest")
        pooled = [
            F.interpolate(p(p2), size=p2.shape[-2:], mode="bilinear", align_corners=True) for p in self.pools
        ]
        return torch.log_softmax(self.head(torch.cat([p2, *pooled], 1)), 1)


class FastScnn(nn.Module):
    """Learning to downsample, separable convolutions, bottlenecks with ReLU6, feature fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            conv_bn(3, 8, 3, nn.ReLU6, stride=2),
            conv_bn(8, 8, 3, None, groups=8, stride=2),
            conv_bn(8, 12, 1),
        )
        self.deep = nn.Sequential(
            InvertedResidual(12, 16, 3, nn.ReLU6, None, stride=2), InvertedResidual(16, 16, 3, nn.ReLU6, None)
        )
        self.fuse_low, self.fuse_high = (
            nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16),
            nn.Conv2d(12, 16, 1),
        )
        self.head = nn.Sequential(conv_bn(16, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = F.interpolate(self.deep(high), scale_factor=2, mode="bilinear", align_corners=False)
        y = self.head(torch.relu(self.fuse_low(low) + self.fuse_high(high)))
        return torch.softmax(F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=False), 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lraspp": LiteRasppMobileNetV3,
    "deeplabv3": DeepLabV3,
    "unet": UNet,
    "segformer": SegFormer,
    "hrnet": HighResolutionNet,
    "enet": ENet,
    "efficient_fpn": EfficientPyramid,
    "fastscnn": FastScnn,
}


def build_network(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights, ready for inference; the same for the same seed."""
    torch.manual_seed(seed)
    return NETWORKS[name]().eval()
