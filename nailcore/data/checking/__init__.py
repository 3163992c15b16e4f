"""Checks of a data folder: photos, shapes, keypoints, people and copies across the parts of its split."""

from nailcore.data.checking.findings import KINDS, CheckReport, Finding
from nailcore.data.checking.run import check_folder

__all__ = ["KINDS", "CheckReport", "Finding", "check_folder"]
