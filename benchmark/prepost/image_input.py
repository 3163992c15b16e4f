"""A CoreML package's image input against Python's: size, channel order, scale and bias, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmark.prepost.check import Reference, describe_unmeasured
from benchmark.prepost.implementations import Implementation
from benchmark.prepost.totals import Photo, describe_part, stage_limits
from nailcore.data.folder import Sample
from nailcore.errors import ArtifactError, ConversionError, DataError, MissingToolError
from nailcore.facts import ImageSet, StageParity
from nailcore.measure import describe_machine, find_versions
from nailcore.storage import hash_path
from nailcore.variant import Variant

if TYPE_CHECKING:
    from deploy.mil import Feature

IMAGE_LIMIT = 3  # the reference executes an image in a second or two
IMPLEMENTATION = "CoreML image input"
ENGINE = "mil-reference"


def check_image_input(
    package: Path, samples: Sequence[Sample], reference: Reference, images: ImageSet
) -> StageParity:
    """Feed the same letterboxed photos to the package as images and to torch as arrays.

    ``max_abs_code_values`` is how far the program's own scale and bias are from ``x - mean`` over all
    values 0..255; ``flipped_permille`` is of the mask, of the first ``IMAGE_LIMIT`` photos. A package
    that cannot be read is a failed fact; an operation the reference does not know makes none.
    """
    from deploy.mil import load_package

    variant, chosen = reference.variant, samples[:IMAGE_LIMIT]
    images = describe_part(images, chosen)
    who = Implementation(
        f"{IMPLEMENTATION} ({package.name})", ENGINE, find_versions(("torch", "coremltools"))
    )
    try:
        model = load_package(package)
        complaints, offset = _check_declaration(model.inputs, variant)
        figures = {"max_abs_code_values": offset}
        if not complaints:
            flips = []
            for sample in chosen:
                image = reference.render(Photo.read(sample))
                found = model.run({model.inputs[0].name: image})["fgbg"]
                mask = reference.infer(image)["fgbg"].argmax(1)
                flips.append(float(1000 * (found.argmax(1) != mask).mean()))
            figures |= {"flipped_permille": float(np.mean(flips)), "worst_flipped_permille": max(flips)}
    except MissingToolError as error:
        return describe_unmeasured("image input", who, variant, images, str(error))
    except (ArtifactError, ConversionError, DataError) as error:
        complaints, figures = [f"{package.name} cannot be executed: {error.message}"], {}
    limits = stage_limits("image input")
    cause = complaints[0] if complaints else ""
    for key, limit, text in (
        ("max_abs_code_values", limits.max_abs, "shifts the input by {:.3g} code values"),
        ("flipped_permille", limits.flipped_permille, "flips {:.3g} ‰ of the mask"),
    ):
        if limit is not None and not figures.get(key, 0.0) <= limit:
            complaints.append(f"It {text.format(figures[key])} (limit {limit:g}).")
    agreement = (
        f"{variant.width_px}×{variant.height_px} px RGB, mean subtracted inside the graph; "
        f"{figures.get('flipped_permille', 0):.2g} ‰ of the mask flips on {len(chosen)} images."
    )
    return StageParity(
        stage="image input",
        implementation=who.name,
        engine=ENGINE,
        variant=variant.name,
        weights_sha256=reference.sha256,
        source_sha256=hash_path(package) if package.exists() else None,
        versions=who.versions,
        machine=describe_machine(),
        images=images,
        figures=figures,
        limits=limits,
        passed=not complaints,
        cause=cause,
        detail=" ".join(complaints) or agreement,
    )


def _check_declaration(inputs: Sequence[Feature], variant: Variant) -> tuple[list[str], float]:
    """Complaints about what the package declares, and its scale's and bias's error in code values."""
    if len(inputs) != 1 or inputs[0].image is None:
        return [f"The package takes {len(inputs)} inputs, not one image."], 0.0
    image = inputs[0].image
    complaints = []
    if (image.height_px, image.width_px) != (variant.height_px, variant.width_px):
        complaints.append(
            f"The image input is {image.width_px}×{image.height_px} px, "
            f"not {variant.width_px}×{variant.height_px} px."
        )
    if image.color_space != "RGB":
        complaints.append(f"Channels reversed: the image input is {image.color_space}, not RGB.")
    values = np.arange(256.0)[:, None]
    scale, bias = (np.resize(np.asarray(v), 3) for v in (image.scale, image.bias))
    error = np.abs(values * scale + bias - (values - np.asarray(variant.mean)))
    return complaints, float(error.max())
