"""Pre- and post-processing checked: each step alone, then end to end, on the same photographs as Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.prepost.implementations import (
    BROWSERS,
    Implementation,
    find_browser_name,
    open_browser,
)
from benchmark.prepost.totals import Photo, Stage, Totals, stage_limits
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.errors import ArtifactError, BrowserError, DataError, MissingToolError
from nailcore.facts import ImageSet, StageParity
from nailcore.measure import describe_machine
from nailcore.preprocess import Letterbox, letterbox
from nailcore.runtime import Logits
from nailcore.storage import hash_file
from nailcore.tryon import find_nails, mask_on_photo
from nailcore.variant import Variant

PREPROCESSING: tuple[Stage, ...] = ("decode", "resize", "normalise", "preprocess")
MIN_AREA_PX = 4  # logits cells; as an app would, so that dropping small components is checked as well
JAVASCRIPT = "nailtool JavaScript"


class Reference:
    """Python's own steps and the trained network: what everything is compared with."""

    def __init__(self, variant: Variant, weights: Path) -> None:
        self.variant = variant
        self.weights = weights
        self.sha256 = hash_file(weights)

    @cached_property
    def _network(self) -> object:
        from nailcore.nets import load_network

        return load_network(self.variant, self.weights)

    def render(self, photo: Photo) -> npt.NDArray[np.uint8]:
        """The network's input, (H, W, 3) uint8 RGB."""
        return letterbox(photo.pixels, self.variant.height_px, self.variant.width_px)

    def infer(self, image: npt.NDArray[np.generic]) -> Logits:
        """(H, W, 3) RGB as the network takes it -> named logits."""
        import torch

        from nailcore.nets.export_form import ExportForm

        network = self._network
        assert isinstance(network, ExportForm)  # noqa: S101 - what load_network gives
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(np.float32))
        with torch.inference_mode():
            values = network(x)
        return {name: value.numpy() for name, value in zip(network.names, values, strict=True)}

    def count_flips(self, logits: Logits, found: npt.NDArray[np.generic]) -> float:
        """Mask pixels (‰) that change side when the network sees ``found``; 1000 when it holds NaN."""
        values = np.asarray(found, np.float32)
        if not np.isfinite(values).all():
            return 1000.0
        a, b = (each["fgbg"].argmax(1) for each in (logits, self.infer(values)))
        return float(1000 * (a != b).mean())


def check_implementations(
    implementations: Sequence[Implementation],
    samples: Iterable[Sample],
    reference: Reference,
    images: ImageSet,
    stages: Sequence[Stage] = (*PREPROCESSING, "postprocess"),
) -> list[StageParity]:
    """Every step the implementations offer against Python's, one photo at a time.

    Raises:
        DataError: a photo cannot be read, or there is none.
        BrowserError: a browser died: no verdict about anything.
    """
    totals = [
        Totals(stage, who, reference.variant)
        for who in implementations
        for stage in stages
        if _offers(who, stage)
    ]
    empty = True
    for sample in samples:
        empty = False
        photo = Photo.read(sample)
        image = reference.render(photo)
        needs_network = any(total.stage not in ("decode", "normalise") for total in totals)
        logits = reference.infer(image) if needs_network else {}
        for total in totals:
            try:
                if total.stage == "postprocess":
                    _add_postprocessing(total, photo, logits)
                else:
                    _add_preprocessing(total, photo, image, logits, reference)
            except ArtifactError as error:  # a page that threw, with our own code's words
                total.refuse(photo.name, error.message)
    if empty:
        raise DataError(f"{images.name}: holds no photographs to compare on.")
    judged_by_network = ("resize", "preprocess")
    return [t.finish(images, reference.sha256 if t.stage in judged_by_network else None) for t in totals]


def _offers(who: Implementation, stage: Stage) -> bool:
    steps = {
        "decode": who.decode,
        "resize": who.resize,
        "normalise": who.normalise,
        "preprocess": who.run,
        "postprocess": who.find_nails,
    }
    return steps.get(stage) is not None


def _add_preprocessing(
    total: Totals, photo: Photo, image: npt.NDArray[np.uint8], logits: Logits, reference: Reference
) -> None:
    """One step, fed with what *Python's* step before it gives: an error is blamed on the step it is in."""
    who, size = total.implementation, image.shape[:2]
    if total.stage == "decode" and who.decode:
        total.add_image(photo, photo.pixels, who.decode(photo.file))
    elif total.stage == "normalise" and who.normalise:
        total.add_image(photo, image.astype(np.float32), who.normalise(image))
    else:
        found: npt.NDArray[np.generic] | None = None
        if total.stage == "resize" and who.resize:
            found = who.resize(photo.pixels, *size)
        elif who.run:
            found = who.run(photo.file, *size)
        assert found is not None  # noqa: S101 - _offers saw to it
        same = found.shape == image.shape
        total.add_image(photo, image, found, reference.count_flips(logits, found) if same else None)


def _add_postprocessing(total: Totals, photo: Photo, logits: Logits) -> None:
    who, variant = total.implementation, total.variant
    assert who.find_nails is not None  # noqa: S101
    fgbg, finger, direction = (logits[name][0] for name in ("fgbg", "finger", "direction"))
    expected = find_nails(fgbg, finger, direction, min_area_px=MIN_AREA_PX)
    total.add_nails(photo.name, logits, expected, who.find_nails(logits, MIN_AREA_PX), MIN_AREA_PX)
    if who.find_mask:
        height, width, _ = photo.pixels.shape
        box = Letterbox(height, width, variant.height_px, variant.width_px)
        mask = mask_on_photo(fgbg, box, variant.output_stride)
        total.add_mask(float(1000 * (mask != who.find_mask(logits, box)).mean()))


def check_engine(
    engine: str,
    samples: Sequence[Sample],
    reference: Reference,
    images: ImageSet,
    stages: Sequence[Stage] = (*PREPROCESSING, "postprocess"),
) -> list[StageParity]:
    """All implementations one browser offers; where it is missing or dies, facts without a verdict."""
    try:
        with open_browser(engine) as implementations:
            return check_implementations(implementations, samples, reference, images, stages)
    except (MissingToolError, BrowserError) as error:
        who = Implementation(JAVASCRIPT, engine)
        return [describe_unmeasured(stage, who, reference.variant, images, str(error)) for stage in stages]


def describe_unmeasured(
    stage: Stage, who: Implementation, variant: Variant, images: ImageSet, reason: str
) -> StageParity:
    """The fact that something could not be measured here, and why."""
    return StageParity(
        stage=stage,
        implementation=who.name,
        engine=who.engine,
        variant=variant.name,
        weights_sha256=None,
        versions=who.versions,
        machine=describe_machine(),
        images=images,
        figures={},
        limits=stage_limits(stage),
        judged=who.judged,
        passed=None,
        detail=f"Not measured here: {reason}",
    )


def check_preprocessing(
    samples: Sequence[Sample],
    variant: Variant,
    engines: Sequence[str] = BROWSERS,
    *,
    weights: Path,
    images: ImageSet,
) -> list[StageParity]:
    """Decode, resize, normalise and all three in each browser against Python's."""
    reference = Reference(variant, weights)
    found = [check_engine(e, samples, reference, images, PREPROCESSING) for e in list_browsers(engines)]
    return [fact for facts in found for fact in facts]


def check_postprocessing(
    samples: Sequence[Sample],
    variant: Variant,
    engines: Sequence[str] = BROWSERS,
    *,
    weights: Path,
    images: ImageSet,
) -> list[StageParity]:
    """Nails and masks from the same logits in each browser against Python's."""
    reference = Reference(variant, weights)
    found = [check_engine(e, samples, reference, images, ("postprocess",)) for e in list_browsers(engines)]
    return [fact for facts in found for fact in facts]


def list_browsers(engines: Sequence[str]) -> list[str]:
    """Browsers among engine names, once each: ``chromium-wasm`` and ``chromium-webgl`` preprocess alike."""
    names = [find_browser_name(engine) for engine in engines]
    return list(dict.fromkeys(name for name in names if name))


def check_stages(
    dataset: Dataset,
    split: Split,
    variant: Variant,
    weights: Path,
    engines: Sequence[str] = BROWSERS,
    *,
    packages: Sequence[Path] = (),
    ios_dumps: Sequence[Path] = (),
) -> list[StageParity]:
    """Everything before and after the network, on one part of a data folder.

    ``engines``: browsers, or TF.js engine names, whose browser counts; others have no stages of ours.
    ``packages``: .mlpackage files whose image input is compared with Python's normalisation.
    ``ios_dumps``: recorded outputs of the iOS app (docs/preprocessing.md); without one iOS is a fact
    that says "not measured here".

    Raises:
        DataError: a photo is unreadable, the part is empty, or a dump belongs to none of its photos.
        WeightsError: unusable weights.
    """
    from benchmark.prepost.image_input import check_image_input
    from benchmark.prepost.ios_dump import check_ios_dumps

    samples, images = dataset.part(split), dataset.describe(split)
    if not samples:
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    reference = Reference(variant, weights)
    facts: list[StageParity] = []
    for browser in list_browsers(engines):
        facts += check_engine(browser, samples, reference, images)
    facts += check_ios_dumps(ios_dumps, samples, reference, images)
    for package in packages:
        facts.append(check_image_input(package, samples, reference, images))
    return facts
