"""What a stage costs (CPU, wall, peak memory) and which machine it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nailcore.facts import Machine


@dataclass
class Cost:
    """Filled when the ``measure_cost`` block ends; CPU seconds include finished children."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_rss_bytes: int = 0


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def measure_cost() -> Iterator[Cost]:
    """Measure a block of this process."""
    cost = Cost()
    cpu, wall = _cpu_s(), time.perf_counter()
    try:
        yield cost
    finally:
        cost.cpu_s = _cpu_s() - cpu
        cost.wall_s = time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cost.peak_rss_bytes = peak if sys.platform == "darwin" else peak * 1024


def find_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name, without importing anything."""
    return {name: importlib.metadata.version(name) for name in distributions}


@cache
def describe_machine() -> Machine:
    """The machine this process runs on."""
    import psutil

    return Machine(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=True) or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
