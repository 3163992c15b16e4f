"""The MIL reference: executes a saved CoreML package on any machine, one torch call per operation."""

from deploy.mil.constants import StoredForm
from deploy.mil.interface import Feature, ImageSpec
from deploy.mil.model import Accumulate, MilModel, Precision, load_package

__all__ = ["Accumulate", "Feature", "ImageSpec", "MilModel", "Precision", "StoredForm", "load_package"]
