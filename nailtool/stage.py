"""A stage: one named step from files to files, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nailtool.nodes import FileNode, Node

Status = Literal["built", "cached", "failed", "blocked", "would run"]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; runs in a worker process of its family.

    ``job`` is ``module:function``; it gets ``arguments`` and must write every product atomically.
    Only ``inputs`` decide whether a stage is stale: whatever changes its result belongs there.
    """

    name: str
    family: str  # workers are kept per family, so that heavy imports are paid once
    job: str
    arguments: Mapping[str, Any]
    inputs: tuple[Node, ...]
    products: tuple[FileNode, ...]
    exclusive: bool = False  # nothing else runs meanwhile: timings
    affinity: str = ""  # stages of one word like to follow each other in one worker, which keeps caches


@dataclass(frozen=True)
class Cost:
    """What one stage took, children included."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True)
class StageResult:
    """How a stage ended. ``reasons`` say why it ran (or would run); empty when it was cached."""

    stage: Stage
    status: Status
    reasons: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)
    error: Exception | None = None
