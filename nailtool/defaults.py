"""What the commands assume when nothing else is said."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_OUT = Path("artifacts")
DEFAULT_REPORTS = Path("reports")
DEFAULT_JOBS = min(2, os.cpu_count() or 1)  # a tensorflow worker needs up to 1.7 GB
DEFAULT_SETTINGS = {"rounds": 15, "threads": 1}  # of a latency measurement
