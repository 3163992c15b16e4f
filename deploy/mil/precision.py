"""Float16 emulation: values are held in float32 and rounded to float16 where the file stores float16.

Rounding happens once per operation, when its result is stored; inside an operation everything is
float32 (float16 storage, float32 accumulation). That is the numerically kind end of what hardware does.
The other end, ``accumulate="fp16"``, also keeps the running sums of convolutions and matrix products in
float16: products are summed in float32 over blocks of `BLOCK` input channels of one kernel tap, as a
vector unit does, and each block's sum is added to a float16 accumulator. Real hardware lies between or
near the two; their difference is a band, not a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

BLOCK = 16  # input channels whose products are summed before the float16 accumulator is rounded


def round_half(value: Tensor, sources: tuple[Tensor, ...] = ()) -> Tensor:
    """``value`` rounded to float16 and held in float32; in place unless it shares memory with a source."""
    half = value.half()
    address = value.data_ptr()
    for source in sources:
        if source.data_ptr() == address:
            return half.float()
    return value.copy_(half)


def accumulate_half(partials: Iterable[Tensor]) -> Tensor:
    """Add float32 partial sums, one after the other, in a float16 accumulator."""
    total: Tensor | None = None
    for partial in partials:
        rounded = partial.half().float()
        total = rounded if total is None else round_half(total.add_(rounded))
    if total is None:
        raise ValueError("a sum over no channels")
    return total


def blocks(count: int) -> Iterator[slice]:
    """Consecutive slices of at most `BLOCK` channels."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))
