"""Checks that a file was calibrated on what it says: these photographs, in RGB, preprocessed as shipped.

Ranges of activations hardly notice swapped colours, so neither do the figures of parity; the pixels do.
"""

from __future__ import annotations

import warnings

from nailcore.artifact import Artifact
from nailcore.data.folder import Dataset
from nailcore.variant import Variant
from quantize.calibration import FewImagesWarning, describe_samples, hash_pixels, load_samples


def check_calibration(artifact: Artifact, variant: Variant, dataset: Dataset) -> list[str]:
    """One sentence when the recorded pixels are not those of the named photographs; else nothing.

    Photographs that ``dataset`` lacks, or holds otherwise, cannot be made again: then nothing is said.
    """
    said = artifact.structure.get("calibration")
    if not isinstance(said, dict) or "pixels_sha256" not in said:
        return []
    known = {sample.name: sample for sample in dataset.samples}
    names = [str(name) for name in said.get("images", ())]
    if not names or any(name not in known for name in names):
        return []
    samples = tuple(known[name] for name in names)
    if describe_samples(dataset, samples).sha256 != said.get("sha256"):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)  # was said when the file was made
        found = hash_pixels(load_samples(samples, variant))
    if found == said["pixels_sha256"]:
        return []
    return [
        f"{artifact.label}: was calibrated on other pixels than its {len(names)} images give through the "
        f"preprocessing that ships (SHA-256 {found[:12]}…, manifest says "
        f"{str(said['pixels_sha256'])[:12]}…): colours in another order, another size or another resampling."
    ]
