"""Which layer's rounding costs how much: each rounded alone, and each alone left in float."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nailcore.data.folder import Dataset, Sample
from nailcore.errors import MissingToolError
from nailcore.facts import Interval
from nailcore.measure import describe_machine, find_versions
from nailcore.metrics import bootstrap_drop, count_confusion
from nailcore.preprocess import Letterbox, letterbox, unletterbox_mask
from nailcore.storage import hash_file, hash_path
from nailcore.variant import Variant
from quantize.prepared import open_prepared
from quantize.recipe import Recipe
from quantize.search import Effect
from quantize.sensitivity_facts import Counts, ImageEffects, LayerSensitivity, SensitivityResult
from quantize.simulate import Scheme, Simulation, as_input, list_layers, list_steps, observe_ranges

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

Progress = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]
_BYTES_PER_VALUE = 4
_SPARE = 1.3  # what torch's workspaces and the decoded photo take beside the tensors


# -- one image ---------------------------------------------------------------------------------------
def measure_image(
    simulation: Simulation,
    variant: Variant,
    sample: Sample,
    progress: Progress | None = None,
    *,
    left_out: bool = True,
) -> ImageEffects:
    """Every layer's effect on one image, in the memory of two forward passes.

    ``left_out=False`` does without the trials in which one layer stays in float, which are half of the work.

    All tensors of the float and of the rounded pass are kept, and each trial computes again only what
    it changes. The simulation is left with the scheme it came with.

    Raises:
        MissingToolError: the machine has not enough free memory.
    """
    check_memory(simulation, variant, passes=2)
    started_s = time.process_time()
    scheme, layers = simulation.scheme, [n for n in simulation.layers if n in simulation.plan.integer]
    view = View(variant, sample, simulation.network.names.index("fgbg"))
    steps, done = (1 + left_out) * len(layers), 0
    only, without = {}, {}
    try:
        with torch.inference_mode():
            simulation.set_scheme(replace(scheme, keep_float=frozenset(simulation.layers), glue=False))
            values, plan = simulation.run_all(view.x), simulation.plan
            clean, confusion = view.see([values[name] for name in simulation.outputs])
            for layer in layers:
                simulation.set_scheme(scheme.only(layer, simulation.layers))
                only[layer] = view.count(simulation.run_changed(values, plan), clean)
                done += 1
                if progress:
                    progress(done, steps)
            simulation.set_scheme(scheme)
            values, plan = simulation.run_all(view.x), simulation.plan
            rounded = view.count([values[name] for name in simulation.outputs], clean)
            for layer in layers if left_out else ():
                simulation.set_scheme(scheme.without(layer))
                without[layer] = view.count(simulation.run_changed(values, plan), clean)
                done += 1
                if progress:
                    progress(done, steps)
    finally:
        simulation.set_scheme(scheme)
    return ImageEffects(
        image=sample.name,
        pixels=int(clean.size),
        clean=confusion,
        rounded=rounded,
        only=only,
        without=without,
        cpu_s=time.process_time() - started_s,
    )


class View:
    """One photo as the network gets it, and its truth."""

    def __init__(self, variant: Variant, sample: Sample, fgbg: int) -> None:
        image = sample.load_image()
        self.truth = sample.load_mask()
        self.box = Letterbox(image.shape[0], image.shape[1], variant.height_px, variant.width_px)
        self.image = letterbox(image, variant.height_px, variant.width_px)[None]
        self.stride, self.fgbg = variant.output_stride, fgbg

    @property
    def x(self) -> torch.Tensor:
        """(1, 3, H, W) as the network gets it; kept as bytes until then."""
        return as_input(self.image)

    def see(self, logits: Sequence[torch.Tensor]) -> tuple[F32, tuple[int, int, int, int]]:
        """The margin (nail less background) at the output's stride; the confusion at the photo's size."""
        fgbg = logits[self.fgbg][0].numpy()
        found = count_confusion(unletterbox_mask(fgbg, self.box, self.stride), self.truth)
        return np.asarray(fgbg[1] - fgbg[0], np.float32), (found.tp, found.fp, found.fn, found.tn)

    def count(self, logits: Sequence[torch.Tensor], clean: F32) -> Counts:
        """What differs from the float network's margin."""
        margin, confusion = self.see(logits)
        nail = 1 / (1 + np.exp(-clean.astype(np.float64)))
        doubt = nail * (1 - nail)
        error = float((doubt * (margin - clean) ** 2).sum() / doubt.sum())
        return Counts(
            confusion=confusion,
            flipped=int(np.count_nonzero((margin > 0) != (clean > 0))),
            margin_error=error,
        )


def check_memory(simulation: Simulation, variant: Variant, *, passes: float) -> None:
    """Say it before the machine starts to swap or kills the process.

    ``passes``: how many times all tensors of an image are in memory at once.

    Raises:
        MissingToolError: less is free than that takes.
    """
    import psutil

    needed = round(passes * _SPARE * _count_values(simulation, variant) * _BYTES_PER_VALUE)
    free = psutil.virtual_memory().available
    if needed > free:
        raise MissingToolError(
            f"{variant.name}: its tensors take about {needed / 1e9:.1f} GB at once, "
            f"and {free / 1e9:.1f} GB are free.",
            hint="Close other programs, use fewer --jobs, a smaller variant, or a smaller batch.",
        )


def _count_values(simulation: Simulation, variant: Variant) -> int:
    """Values in all tensors of one image: proportional to its pixels, so a small one tells."""
    side = 64
    with torch.no_grad():  # kernels rounded in inference mode could not be trained through later
        values = simulation.run_all(torch.zeros(1, 3, side, side))
    return sum(v.numel() for v in values.values()) * variant.height_px * variant.width_px // side**2


# -- all images --------------------------------------------------------------------------------------
def count_work(network: ExportForm, layers: Sequence[str], variant: Variant) -> dict[str, tuple[int, int]]:
    """Layer -> (multiplications for one image of the variant, weights)."""
    sizes: dict[str, int] = {}
    modules = {name: network.get_submodule(name) for name in layers}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, out, name=name: sizes.__setitem__(name, out.shape[2] * out.shape[3])
        )
        for name, module in modules.items()
    ]
    side = 64
    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    scale = variant.height_px * variant.width_px / side**2
    found = {}
    for name, module in modules.items():
        assert isinstance(module, nn.Conv2d)  # noqa: S101 - layers are convolutions
        weights = module.weight.numel()
        found[name] = (round(weights * sizes[name] * scale), weights)
    return found


def summarise(
    effects: Sequence[ImageEffects], work: dict[str, tuple[int, int]]
) -> tuple[LayerSensitivity, ...]:
    """Pool the images (at least one) by layer."""
    clean = _stack([e.clean for e in effects])
    rounded = _stack([e.rounded.confusion for e in effects])
    pixels = sum(e.pixels for e in effects)
    all_flipped = sum(e.rounded.flipped for e in effects)
    all_error = sum(e.rounded.margin_error for e in effects) or 1.0
    found = []
    for layer in effects[0].only:
        only = _stack([e.only[layer].confusion for e in effects])
        without = _stack([e.without[layer].confusion for e in effects])
        flipped = sum(e.without[layer].flipped for e in effects)
        found.append(
            LayerSensitivity(
                layer=layer,
                macs=work[layer][0],
                weights=work[layer][1],
                only_drop_points=bootstrap_drop("nail_iou", clean, only),
                only_flipped_permille=1000 * sum(e.only[layer].flipped for e in effects) / pixels,
                only_share=sum(e.only[layer].margin_error for e in effects) / all_error,
                without_drop_points=bootstrap_drop("nail_iou", clean, without),
                without_flipped_permille=1000 * flipped / pixels,
                saved_points=bootstrap_drop("nail_iou", without, rounded),
                saved_permille=1000 * (all_flipped - flipped) / pixels,
                saved_share=1 - sum(e.without[layer].margin_error for e in effects) / all_error,
            )
        )
    return tuple(found)


def measure_whole(effects: Sequence[ImageEffects]) -> tuple[Interval, float]:
    """Drop in points and flipped pixels in ‰ with everything rounded."""
    drop = bootstrap_drop(
        "nail_iou", _stack([e.clean for e in effects]), _stack([e.rounded.confusion for e in effects])
    )
    return drop, 1000 * sum(e.rounded.flipped for e in effects) / sum(e.pixels for e in effects)


def _stack(counts: Sequence[tuple[int, int, int, int]]) -> npt.NDArray[np.float64]:
    return np.asarray(counts, np.float64)


class Trials:
    """Measures mixes of integer and float layers on the same images, which are decoded once."""

    def __init__(self, simulation: Simulation, variant: Variant, samples: Sequence[Sample]) -> None:
        check_memory(simulation, variant, passes=1)
        self.simulation, self.scheme = simulation, simulation.scheme
        fgbg = simulation.network.names.index("fgbg")
        self.views = [View(variant, sample, fgbg) for sample in samples]
        with torch.inference_mode():
            self.clean = [view.see(simulation.network(view.x)) for view in self.views]

    def evaluate(self, float_layers: frozenset[str]) -> Effect:
        """Drop and flipped pixels with these layers left in float beside those of the scheme."""
        self.simulation.set_scheme(self.scheme.without(*float_layers))
        try:
            with torch.inference_mode():
                found = [
                    view.count(self.simulation(view.x), margin)
                    for view, (margin, _) in zip(self.views, self.clean, strict=True)
                ]
        finally:
            self.simulation.set_scheme(self.scheme)
        clean = _stack([confusion for _, confusion in self.clean])
        drop = bootstrap_drop("nail_iou", clean, _stack([counts.confusion for counts in found]))
        pixels = sum(margin.size for margin, _ in self.clean)
        return Effect(drop, 1000 * sum(counts.flipped for counts in found) / pixels)


# -- from files ----------------------------------------------------------------------------------------
def open_simulation(
    variant: Variant, recipe: Recipe, weights: Path, prepared: Path, *, float_layers: Sequence[str] = ()
) -> Simulation:
    """What an integer recipe makes of a variant, with ranges from its prepared calibration images.

    Raises:
        NailtoolError: the recipe computes in float.
        UnknownNameError: a layer to keep in float does not exist.
        ArtifactError, WeightsError: the prepared folder or the weights cannot be used.
    """
    opened = open_prepared(prepared)
    network = opened.load_network(variant, weights)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = list_layers(list_steps(network))
    scheme = Scheme.of(recipe, layers, (*opened.card.float_layers, *float_layers))
    calibration = recipe.calibration
    assert calibration is not None  # noqa: S101 - a recipe with activations has it
    return Simulation(network, scheme, observe_ranges(network, opened.load_images(), calibration))


def pool_images(
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    prepared: Path,
    *,
    dataset: Dataset,
    part: str,
    effects: Sequence[ImageEffects],
) -> SensitivityResult:
    """What images (at least one) that were measured one by one say together."""
    network = open_prepared(prepared).load_network(variant, weights)
    names = {effect.image for effect in effects}
    seen = replace(dataset, samples=tuple(s for s in dataset.samples if s.name in names), split=None)
    images = seen.describe("all")
    drop, flipped = measure_whole(effects)
    return SensitivityResult(
        variant=variant.name,
        recipe=recipe.name,
        weights_sha256=hash_file(weights),
        prepared_sha256=hash_path(prepared),
        part=part,
        images=images.model_copy(update={"name": f"{dataset.card.name} {part}"}),
        drop_points=drop,
        flipped_permille=flipped,
        layers=summarise(effects, count_work(network, list(effects[0].only), variant)),
        runtime=f"fake quantization, torch {torch.__version__}",
        versions=find_versions(("torch", "numpy", "opencv-python-headless")),
        machine=describe_machine(),
        cpu_s=sum(effect.cpu_s for effect in effects),
    )
