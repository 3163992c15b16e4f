"""What runs inside a worker process: one function per kind of stage, from files to files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nailcore.artifact import manifest_path, open_artifact, write_manifest
from nailcore.errors import ConversionError
from nailcore.facts import write_fact
from nailcore.storage import replacing
from nailcore.variant import Variant

if TYPE_CHECKING:
    from nailcore.data.folder import Dataset, Sample
    from nailcore.gate_facts import GateRules, Unmeasured
    from quantize import Recipe
    from quantize.simulate import Simulation

Progress = Callable[[int, int], None]
CONVERSION_IMAGES = 4  # each is executed by every step of a conversion


def prepare_recipe(
    *, variant: Variant, recipe: Recipe, weights: Path, data: Path, out: Path, progress: Progress
) -> None:
    """Calibration images, and the network as a recipe's passes and training leave it."""
    from quantize.prepare import prepare

    prepare(variant, recipe, weights, _open_dataset(data), out, progress)


def convert(
    *,
    target: str,
    variant: Variant,
    recipe: dict[str, Any],
    parent: Path,
    prepared: Path | None,
    out: Path,
    progress: Progress,
) -> None:
    """Make one artefact and its manifest. A parent that is an artefact is checked against its own."""
    if manifest_path(parent).is_file():
        open_artifact(manifest_path(parent))
    options = {} if prepared is None else {"prepared": prepared}
    artifact = importlib.import_module(target).convert(variant, recipe, parent, out, **options)
    if artifact.file != out.name:
        raise ConversionError(f"{target} described '{artifact.file}' but was asked to write '{out.name}'.")
    write_manifest(out, artifact)


def unpack_embedded(*, out: Path, whole: bool, progress: Progress) -> None:
    """Unpack the default data folder."""
    from nailcore.data.synth.embedded import DOZEN, make_embedded_set

    make_embedded_set(out, test_images=None if whole else DOZEN, progress=progress)


@lru_cache(maxsize=2)
def _open_dataset(root: Path) -> Dataset:
    from nailcore.data.folder import open_dataset

    return open_dataset(root)


def check_parity(
    *,
    manifest: Path,
    weights: Path,
    data: Path,
    engine: str,
    fact: Path,
    heatmap_dir: Path,
    golden: Path | None,
    progress: Progress,
) -> None:
    """Compare one artefact, executed by one engine, with the trained network on the held-out images."""
    from benchmark import parity

    # An engine that fails leaves no verdict, and none of an earlier version either.
    fact.unlink(missing_ok=True)
    with replacing(heatmap_dir) as scratch:
        scratch.mkdir()
        result = parity.check_parity(
            manifest,
            weights,
            _open_dataset(data),
            "test",
            engine=engine,
            heatmap_dir=scratch,
            golden=golden,
        )
    write_fact(fact, result)


def check_prepost(
    *,
    variant: Variant,
    weights: Path,
    data: Path,
    engines: Sequence[str],
    packages: Sequence[Path],
    ios_dumps: Sequence[Path],
    fact: Path,
    progress: Progress,
) -> None:
    """Compare what surrounds the network, in browsers, packages and the iOS app, with Python's."""
    from benchmark.prepost import check_stages
    from nailcore.facts import PrePostResult
    from nailcore.storage import hash_file

    fact.unlink(missing_ok=True)
    dataset = _open_dataset(data)
    stages = check_stages(dataset, "test", variant, weights, engines, packages=packages, ios_dumps=ios_dumps)
    result = PrePostResult(
        variant=variant.name,
        weights_sha256=hash_file(weights),
        images=dataset.describe("test"),
        stages=stages,
    )
    write_fact(fact, result)


def compare_conversion(
    *,
    manifest: Path,
    variant: Variant,
    recipe: dict[str, Any],
    weights: Path,
    data: Path,
    out_dir: Path,
    fact: Path,
    progress: Progress,
) -> None:
    """Compare each step of a conversion with the one before it, on the first held-out images."""
    from benchmark import parity
    from benchmark.conversion_stages import Chain, compare_stages
    from nailcore.divergence_facts import ConversionStages
    from nailcore.facts import ArtifactRef
    from nailcore.measure import describe_machine
    from nailcore.runtime import Engine
    from nailcore.storage import hash_file

    fact.unlink(missing_ok=True)
    artifact, _ = open_artifact(manifest)
    seen = Engine("steps", image_limit=CONVERSION_IMAGES)
    samples, images = parity.describe_images(_open_dataset(data), "test", seen)
    chain = cast(Chain, artifact.kind)
    pairs = compare_stages(variant, weights, chain, recipe, samples=samples, out_dir=out_dir)
    result = ConversionStages(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=hash_file(weights),
        images=images,
        versions=artifact.made_by.versions,
        machine=describe_machine(),
        pairs=pairs,
    )
    write_fact(fact, result)


def evaluate_accuracy(
    *, variant: Variant, weights: Path, data: Path, fact: Path, overlay_dir: Path, progress: Progress
) -> None:
    """Accuracy of one variant on the held-out images, with an overlay per image."""
    from benchmark import accuracy

    with replacing(overlay_dir) as scratch:
        scratch.mkdir()
        result = accuracy.evaluate_accuracy(variant, weights, _open_dataset(data), "test", scratch)
    write_fact(fact, result)


def profile_device(
    *,
    device: str,
    manifests: Sequence[Path],
    facts: Sequence[Path],
    settings: dict[str, int],
    progress: Progress,
) -> None:
    """Time all artefacts of one device, interleaved."""
    from benchmark.latency import ProfileSettings

    module = importlib.import_module(device)
    measurements = module.profile(manifests, ProfileSettings(**settings), progress)
    if len(measurements) != len(facts):
        raise ConversionError(f"{device} returned {len(measurements)} measurements for {len(facts)} files.")
    for fact, measurement in zip(facts, measurements, strict=True):
        write_fact(fact, measurement)


def compare_speed(
    *, device: str, manifests: Sequence[Path], rounds: int, fact: Path, progress: Progress
) -> None:
    """Time the files of one variant and target in one interleaved run."""
    from benchmark.latency import ProfileSettings
    from nailcore.gate_facts import SpeedRun

    module = importlib.import_module(device)
    measurements = module.profile(manifests, ProfileSettings(rounds=rounds), progress)
    write_fact(fact, SpeedRun(device=module.NAME, measurements=measurements))


def judge_gate(
    *,
    manifest: Path,
    fp32: Path | None,
    parity: Path,
    runs: Sequence[Path],
    unmeasured: Sequence[Unmeasured],
    rules: GateRules,
    fact: Path,
    progress: Progress,
) -> None:
    """Judge one file from its facts: may it ship, and what did it buy?"""
    from benchmark.gate import judge_file
    from nailcore.artifact import read_manifest
    from nailcore.facts import ParityResult, read_fact
    from nailcore.gate_facts import SpeedRun

    verdict = judge_file(
        read_manifest(manifest),
        read_manifest(fp32) if fp32 else None,
        read_fact(parity, ParityResult),
        rules,
        runs=[read_fact(run, SpeedRun) for run in runs],
        unmeasured=unmeasured,
    )
    write_fact(fact, verdict)


def render_report(
    *, out_dir: Path, context: dict[str, Any], data: Path, report: Path, progress: Progress
) -> None:
    """Write the HTML report from the facts of an output folder."""
    from benchmark.report import ReportContext, collect_facts, write_report
    from benchmark.report import render_report as render

    images = _open_dataset(data).describe("test")
    found = collect_facts(out_dir, ReportContext(images=images, **context))
    write_report(report, render(found))


def measure_image_sensitivity(
    *,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    prepared: Path,
    sample: Sample,
    out: Path,
    progress: Progress,
) -> None:
    """What one image says about the rounding of every layer."""
    from nailcore.storage import hash_path
    from quantize.sensitivity import measure_image

    key = (variant, recipe, weights, hash_path(weights), prepared, hash_path(prepared))
    write_fact(out, measure_image(_open_simulation(*key), variant, sample, progress))


@lru_cache(maxsize=1)
def _open_simulation(
    variant: Variant, recipe: Recipe, weights: Path, _weights: str, prepared: Path, _prepared: str
) -> Simulation:
    from quantize.sensitivity import open_simulation

    return open_simulation(variant, recipe, weights, prepared)


def pool_sensitivity(
    *,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    prepared: Path,
    part: str,
    data: Path,
    effects: Sequence[Path],
    out: Path,
    progress: Progress,
) -> None:
    """Pool what the images say, and draw it."""
    from nailcore.facts import read_fact
    from nailcore.storage import write_text
    from quantize.sensitivity import pool_images
    from quantize.sensitivity_facts import ImageEffects
    from quantize.sensitivity_plot import draw_sensitivity

    found = [read_fact(path, ImageEffects) for path in effects]
    dataset = _open_dataset(data)
    result = pool_images(variant, recipe, weights, prepared, dataset=dataset, part=part, effects=found)
    write_text(out.with_suffix(".svg"), draw_sensitivity(result))
    write_fact(out, result)


def search_float_layers(
    *,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    prepared: Path,
    data: Path,
    max_drop_points: float,
    out: Path,
    recipe_out: Path,
    progress: Progress,
) -> None:
    """Find the layers that have to stay in float, and write the recipe that leaves them there."""
    from nailcore.storage import write_text
    from nailtool.served import keep_layers
    from quantize.sensitivity import open_simulation
    from quantize.training import search_training_part, write_recipe

    simulation = open_simulation(variant, recipe, weights, prepared)
    found = search_training_part(simulation, variant, _open_dataset(data), max_drop_points, progress)
    summary = f"{recipe.name}, {len(found.float_layers)} layers of {variant.name} in float"
    # A recipe for a target that rounds every layer could not be built.
    targets = keep_layers(recipe.targets) if found.float_layers else recipe.targets
    base = recipe.model_copy(update={"targets": targets})
    write_text(recipe_out, write_recipe(base, recipe_out.stem, summary, found.float_layers))
    write_fact(out, found)
