"""MIL recurrent layers: rnn, gru and lstm, one step after the other in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from deploy.mil.registry import handles
from nailcore.errors import ConversionError

Activation = Literal["sigmoid", "tanh", "relu", "linear", "scaled_tanh", "hard_sigmoid", "sigmoid_hard"]
Direction = Literal["forward", "reverse"]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
    # These take no parameters here: CoreML uses 1 and 1, and 0.2 and 0.5.
    "scaled_tanh": torch.tanh,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0),
}


def _zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0]) if bias is None else bias


def _walk(
    x: Tensor, state: tuple[Tensor, ...], step: Callable[..., tuple[Tensor, ...]], *, reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states of every step in the order they are computed, (s, b, H), and the last state."""
    outputs: list[Tensor] = []
    for t in range(len(x) - 1, -1, -1) if reverse else range(len(x)):
        state = step(x[t], *state)
        outputs.append(state[0])
    return torch.stack(outputs), state


@handles("rnn")
def rnn(
    x: Tensor,
    *,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: Direction = "forward",
    output_sequence: bool = False,
    activation: Activation = "tanh",
) -> tuple[Tensor, Tensor]:
    """(s, b, I) to (s or 1, b, H) and the last (b, H)."""
    shift = _zeros(bias, weight_ih)

    def step(now: Tensor, h: Tensor) -> tuple[Tensor]:
        return (_FUNCTIONS[activation](now @ weight_ih.T + h @ weight_hh.T + shift),)

    outputs, (last,) = _walk(x, (initial_h,), step, reverse=direction == "reverse")
    return outputs if output_sequence else last[None].clone(), last.clone()


@handles("gru")
def gru(
    x: Tensor,
    *,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: Direction = "forward",
    output_sequence: bool = False,
    recurrent_activation: Activation = "sigmoid",
    activation: Activation = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(s, b, I) to (s or 1, b, H) and the last (b, H); gates in the order reset, new, update."""
    gate, squash = _FUNCTIONS[recurrent_activation], _FUNCTIONS[activation]
    shift, shift_in = _zeros(bias, weight_ih), _zeros(input_bias, weight_ih)
    hidden = weight_hh.shape[1]
    w_r, w_o, w_z = torch.split(weight_hh, hidden)
    b_r, b_o, b_z = torch.split(shift, hidden)

    def step(now: Tensor, h: Tensor) -> tuple[Tensor]:
        i_r, i_o, i_z = torch.split(now @ weight_ih.T + shift_in, hidden, 1)
        r = gate(i_r + h @ w_r.T + b_r)
        z = gate(i_z + h @ w_z.T + b_z)
        new = r * (h @ w_o.T + b_o) if reset_after else (r * h) @ w_o.T + b_o
        return ((1 - z) * squash(i_o + new) + z * h,)

    outputs, (last,) = _walk(x, (initial_h,), step, reverse=direction == "reverse")
    return outputs if output_sequence else last[None].clone(), last.clone()


def _lstm_one_way(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    functions: tuple[str, str, str],
    clip: float | None,
    *,
    reverse: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    weight_ih, weight_hh, bias, peephole = weights
    gate, cell, squash = (_FUNCTIONS[f] for f in functions)
    shift = _zeros(bias, weight_ih)
    hidden = weight_hh.shape[1]
    p_i, p_f, p_o = (torch.zeros(3, hidden) if peephole is None else peephole.reshape(3, hidden)).unbind()

    def step(now: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, z = torch.split(now @ weight_ih.T + h @ weight_hh.T + shift, hidden, 1)
        c_new = gate(f + p_f * c) * c + gate(i + p_i * c) * cell(z)
        c_new = c_new if clip is None else c_new.clamp(-clip, clip)
        return gate(o + p_o * c_new) * squash(c_new), c_new

    return _walk(x, state, step, reverse=reverse)


@handles("lstm")
def lstm(
    x: Tensor,
    *,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: Literal["forward", "reverse", "bidirectional"] = "forward",
    output_sequence: bool = False,
    recurrent_activation: Activation = "sigmoid",
    cell_activation: Activation = "tanh",
    activation: Activation = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(s, b, I) to (s or 1, b, D * H) and the last h and c; gates: input, forget, output, cell."""
    functions = (recurrent_activation, cell_activation, activation)
    ways = [(weight_ih, weight_hh, bias, peephole)]
    if direction == "bidirectional":
        if weight_ih_back is None or weight_hh_back is None:
            raise ConversionError("a bidirectional lstm lacks its weights for the way back")
        ways.append((weight_ih_back, weight_hh_back, bias_back, peephole_back))
    outputs, states = [], []
    hs, cs = initial_h.chunk(len(ways), 1), initial_c.chunk(len(ways), 1)
    for i, weights in enumerate(ways):
        back = direction == "reverse" or i == 1
        sequence, state = _lstm_one_way(x, (hs[i], cs[i]), weights, functions, clip, reverse=back)
        outputs.append(sequence.flip(0) if i == 1 else sequence)  # both ways in the order of x
        states.append(state)
    h = torch.cat([s[0] for s in states], 1)
    c = torch.cat([s[1] for s in states], 1)
    return torch.cat(outputs, 2) if output_sequence else h[None].clone(), h, c
