"""Torch modules with drawn parameters, converted by coremltools and executed by the MIL reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.deploy.mil_builder import convert_module, run_module

# One conversion takes about a second whatever its size: each example packs several drawn modules.
FEW = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking would convert hundreds of times
    suppress_health_check=[HealthCheck.too_slow],
)
OPSET = st.sampled_from((15, 16, 17, 18))


class Side(nn.Module):
    """Several modules on the same input, side by side."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


class Call(nn.Module):
    """A function with fixed options as a module."""

    def __init__(self, function: Any, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.options = function, arguments, options

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x, *self.arguments, **self.options)
        return result


def check(modules: Sequence[nn.Module], x: Tensor, opset: int, atol: float = 2e-5) -> None:
    both = Side(modules)
    with tempfile.TemporaryDirectory() as folder:
        model = convert_module(both, [x], Path(folder) / "side.mlpackage", opset=opset)
        found = list(model.run({"x0": x.numpy()}).values())
    for module, have, want in zip(modules, found, run_module(both, [x]), strict=True):
        assert have.shape == (want.shape or (1,)), module
        np.testing.assert_allclose(have, want.reshape(have.shape), atol=atol, rtol=1e-5, err_msg=str(module))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    groups = draw(st.sampled_from((1, 2, 4)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.integers(1, 2))
    padding: Any = draw(st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("same")))
    stride = 1 if padding == "same" else draw(st.integers(1, 3))
    return nn.Conv2d(
        4, 8, kernel, stride, padding, dilation=dilation, groups=groups, bias=draw(st.booleans())
    )


@FEW
@given(st.lists(convolutions(), min_size=5, max_size=5), OPSET)
def test_convolutions(modules: list[nn.Module], opset: int) -> None:
    check(modules, noise(1, 4, 11, 9), opset)


@st.composite
def transposed(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, (kernel - 1) // 2))
    return nn.ConvTranspose2d(
        4,
        6,
        kernel,
        stride,
        padding,
        # coremltools cannot convert more output padding than padding.
        output_padding=draw(st.integers(0, min(padding, stride - 1))),
        groups=draw(st.sampled_from((1, 2))),
        bias=draw(st.booleans()),
    )


@FEW
@given(st.lists(transposed(), min_size=5, max_size=5), OPSET)
def test_transposed_convolutions(modules: list[nn.Module], opset: int) -> None:
    check(modules, noise(1, 4, 5, 6), opset)


@st.composite
def poolings(draw: st.DrawFn) -> nn.Module:
    kernel = draw(st.integers(2, 4))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)),
        "ceil_mode": draw(st.booleans()),
    }
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, **options)
    return nn.AvgPool2d(kernel, count_include_pad=draw(st.booleans()), **options)


@FEW
@given(st.lists(poolings(), min_size=5, max_size=5), OPSET)
def test_pooling(modules: list[nn.Module], opset: int) -> None:
    check(modules, noise(1, 3, 10, 13), opset)


@st.composite
def resizings(draw: st.DrawFn) -> nn.Module:
    mode = draw(st.sampled_from(("bilinear", "nearest")))
    options: dict[str, Any] = {"mode": mode}
    if mode == "bilinear":
        options["align_corners"] = draw(st.booleans())
    if draw(st.booleans()):
        options["size"] = (draw(st.integers(4, 20)), draw(st.integers(4, 20)))
    else:
        options["scale_factor"] = draw(st.sampled_from((2.0, 3.0, 0.5)))
    return Call(F.interpolate, **options)


@FEW
@given(st.lists(resizings(), min_size=5, max_size=5), OPSET)
def test_resizing(modules: list[nn.Module], opset: int) -> None:
    check(modules, noise(1, 3, 8, 10), opset)


LAYOUT = [
    Call(F.pad, (1, 2, 3, 0)),
    Call(F.pad, (1, 0, 2, 1), mode="reflect"),
    Call(F.pad, (2, 1, 0, 3), mode="replicate"),
    Call(lambda x: x[:, 1:, ::2, -3:]),
    Call(lambda x: x[:, -1]),
    Call(lambda x: x.flip(-1)),
    Call(lambda x: x.permute(0, 2, 3, 1).reshape(1, -1, 4)),
    Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    Call(lambda x: torch.stack([x, x * 2], -1).flatten(1)),
    Call(F.pixel_shuffle, 2),
    Call(lambda x: x.repeat(1, 2, 1, 3)),
    Call(lambda x: x.squeeze(0).unsqueeze(-1)),
    Call(lambda x: x.roll(2, 3)),
    Call(lambda x: x.index_select(1, torch.tensor([2, 0]))),
    Call(lambda x: torch.where(x > 0, x, x.exp() - 1)),
    Call(lambda x: x.cumsum(2)),
    Call(lambda x: torch.triu(x[0, 0])),
    Call(lambda x: x.expand(2, -1, -1, -1)),
    Call(lambda x: F.one_hot((x[0, 0] > 0).long(), 2).float()),
]
FUNCTIONS = [
    *(
        getattr(nn, name)()
        for name in (
            "ReLU", "ReLU6", "LeakyReLU", "ELU", "GELU", "SiLU", "Hardswish", "Hardsigmoid", "Sigmoid",
            "Tanh", "Softplus", "Softsign", "Mish",
        )
    ),
    nn.PReLU(4, 0.3),
    nn.Softmax(1),
    nn.LogSoftmax(2),
    nn.Hardtanh(-0.4, 0.8),
    nn.Threshold(0.1, 0.0),
    Call(F.gelu, approximate="tanh"),
    Call(F.normalize, dim=1),
    Call(lambda x: x.clamp(min=0.2)),
    Call(lambda x: x.mean((2, 3), keepdim=True)),
    Call(lambda x: x.amax(1)),
    Call(lambda x: x.sum(3)),
    Call(lambda x: x.norm(dim=1)),
    Call(lambda x: x.logsumexp(1)),
    Call(lambda x: x.topk(2, 1)[0]),
    Call(lambda x: x.argmax(1).float()),
    Call(lambda x: x.abs().sqrt() + x.square().log1p()),
    Call(lambda x: torch.rsqrt(x.abs() + 1)),
    Call(lambda x: (x / 2).round() + x.floor() + x.ceil()),
    Call(lambda x: x % 0.7 + torch.floor_divide(x, 0.3)),
    Call(lambda x: torch.maximum(x, -x) + torch.minimum(x, x * 2)),
    Call(lambda x: torch.einsum("nchw,nkhw->nck", x, x)),
    Call(lambda x: x @ x.transpose(-1, -2)),
    Call(lambda x: ((x > 0) & (x < 1)).float()),
]  # fmt: skip
NORMS = [
    nn.BatchNorm2d(4),
    nn.GroupNorm(2, 4),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm([6, 8]),
    nn.LayerNorm(8, eps=1e-3),
    nn.LocalResponseNorm(3, alpha=0.1),
    nn.LocalResponseNorm(2, alpha=0.2, k=2.0),
]


@pytest.mark.parametrize(
    ("modules", "opset"),
    [(LAYOUT, 15), (LAYOUT, 17), (FUNCTIONS, 16), (NORMS, 18)],
    ids=["layout", "layout 17", "functions", "norms"],
)
def test_many_functions_at_once(modules: list[nn.Module], opset: int) -> None:
    torch.manual_seed(2)
    for module in modules:
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 0.1, 0.9)
    check(modules, noise(1, 4, 6, 8), opset, atol=5e-5)


@pytest.mark.parametrize("opset", [15, 18])
def test_sequences_and_attention(opset: int) -> None:
    torch.manual_seed(4)

    class Sequence_(nn.Module):  # noqa: N801
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(6, 5, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            attended = F.scaled_dot_product_attention(x, x, x)
            return self.lstm(x)[0], self.gru(x)[0], attended

    x = noise(1, 7, 6)
    module = Sequence_()
    with tempfile.TemporaryDirectory() as folder:
        model = convert_module(module, [x], Path(folder) / "s.mlpackage", opset=opset)
        found = list(model.run({"x0": x.numpy()}).values())
    for have, want in zip(found, run_module(module, [x]), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)


def test_geometry() -> None:
    theta = torch.tensor([[[0.9, 0.1, 0.05], [-0.2, 1.1, -0.1]]])
    grid = F.affine_grid(theta, [1, 3, 7, 9], align_corners=False)
    modules = [
        Call(F.grid_sample, grid, mode=mode, padding_mode=padding, align_corners=align)
        for mode in ("bilinear", "nearest")
        for padding, align in (("zeros", False), ("border", True), ("reflection", False))
    ]
    check(modules, noise(1, 3, 8, 10), 18)
