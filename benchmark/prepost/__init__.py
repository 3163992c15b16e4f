"""The steps before and after the network, compared across Python, browsers and iOS on the same photos."""

from benchmark.prepost.check import (
    check_implementations,
    check_postprocessing,
    check_preprocessing,
    check_stages,
)
from benchmark.prepost.ios_dump import check_ios_dumps, read_dump

__all__ = [
    "check_implementations",
    "check_ios_dumps",
    "check_postprocessing",
    "check_preprocessing",
    "check_stages",
    "read_dump",
]
