"""What the commands assume when nothing else is said."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_OUT = Path("artifacts")
DEFAULT_REPORTS = Path("reports")
DEFAULT_JOBS = min(2, os.cpu_count() or 1)  # a tensorflow worker needs up to 1.7 GB
# Of a latency measurement: 16 samples or more per artefact, in about three minutes for 12 in a browser.
DEFAULT_SETTINGS = {"rounds": 8, "threads": 1}
