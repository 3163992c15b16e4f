"""Goldens: what CoreML itself computed on a Mac, recorded there and compared anywhere."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import numpy.typing as npt
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark.comparison import Comparison, judge
from benchmark.limits import limits_of
from benchmark.program import reporting
from model_zoo import find_variant, weights_path
from nailcore.artifact import Artifact, manifest_path, open_artifact
from nailcore.data.folder import Dataset, Sample, Split, open_dataset
from nailcore.errors import ArtifactError, CheckFailedError, DataError, NailtoolError, UnknownNameError
from nailcore.facts import ArtifactRef, ImageSet, Machine, OutputParity
from nailcore.measure import describe_machine
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Logits, Runner
from nailcore.storage import hash_file, replacing, write_text

_RECORD_AGAIN = "Record it again on a Mac: python -m benchmark.coreml_golden record --help"


class GoldenCard(BaseModel):
    """The JSON beside a golden's arrays: whose answers they are, to which questions, and by what."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    artifact: ArtifactRef
    images: ImageSet
    pixels_sha256: dict[str, str]  # of each letterboxed image as the model got it, by name
    runtime: str  # "CoreML, macOS 15.1, ALL"
    versions: dict[str, str]  # macOS, coremltools, nailtool
    settings: dict[str, str]  # compute units
    machine: Machine
    arrays: str  # file name of the npz
    arrays_sha256: str


class RuntimeFigures(BaseModel):
    """One runtime against torch on the golden's images."""

    model_config = ConfigDict(frozen=True)
    runtime: str
    outputs: list[OutputParity]
    flipped_permille: float
    mask_iou: float


class GoldenComparison(BaseModel):
    """CoreML's own answers beside the MIL reference's, each against torch, and against each other."""

    model_config = ConfigDict(frozen=True)
    coreml: RuntimeFigures
    mil_reference: RuntimeFigures
    coreml_against_mil: RuntimeFigures
    failures: list[str]  # limits that CoreML's answers break


def card_path(golden: Path) -> Path:
    """The JSON beside the arrays ``golden.npz``."""
    return golden.with_suffix(".json")


def _letterboxed(
    samples: tuple[Sample, ...], artifact: Artifact
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    variant = find_variant(artifact.variant)
    for sample in samples:
        yield sample.name, letterbox(sample.load_image(), variant.height_px, variant.width_px)


def _hash_pixels(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def record(
    manifest: Path, dataset: Dataset, split: Split, out: Path, *, compute_units: str = "ALL"
) -> GoldenCard:
    """Let CoreML execute a package on the photographs and keep its logits; macOS only.

    Args:
        manifest: of the package, which lies beside it.
        dataset, split: the photographs.
        out: ``*.npz`` to write; its card is written beside it.
        compute_units: ALL, CPU_ONLY, CPU_AND_GPU or CPU_AND_NE.

    Raises:
        MissingToolError: this is no Mac, or Pillow is missing.
        ArtifactError: the package is not the one its manifest describes, or CoreML does not load it.
        DataError: no photographs.
    """
    from deploy.coreml_runners import CoreMLRunner

    artifact, path = open_artifact(manifest)
    runner = CoreMLRunner(artifact, path, compute_units)
    try:
        return record_runner(runner, artifact, dataset, split, out)
    finally:
        runner.close()


def record_runner(
    runner: Runner, artifact: Artifact, dataset: Dataset, split: Split, out: Path
) -> GoldenCard:
    """Keep the logits of any runner as a golden; its card names the runtime."""
    samples = dataset.part(split)
    if not samples:
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    if out.suffix != ".npz":
        raise NailtoolError(f"{out}: a golden's arrays are an .npz file.")
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    pixels: dict[str, str] = {}
    for name, image in _letterboxed(samples, artifact):
        pixels[name] = _hash_pixels(image)
        for output, value in runner.run(image[None]).items():
            arrays[f"{name}/{output}"] = value
    with replacing(out) as scratch, scratch.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    card = GoldenCard(
        artifact=ArtifactRef.of(artifact),
        images=dataset.describe(split),
        pixels_sha256=pixels,
        runtime=runner.runtime,
        versions=runner.versions,
        settings=dict(getattr(runner, "settings", {})),
        machine=describe_machine(),
        arrays=out.name,
        arrays_sha256=hash_file(out),
    )
    write_text(card_path(out), card.model_dump_json(indent=1) + "\n")
    return card


class GoldenRunner:
    """Runner: answers with what was recorded, and only to the very images that were recorded."""

    def __init__(self, golden: Path, artifact: Artifact) -> None:
        """Open a golden for one artefact.

        Raises:
            ArtifactError: missing, damaged, or recorded from another file; the message names both.
        """
        self.card = read_card(golden)
        if self.card.artifact.sha256 != artifact.sha256:
            raise ArtifactError(
                f"{golden.name}: recorded from {self.card.artifact.label} with SHA-256 "
                f"{self.card.artifact.sha256[:12]}…, not from {artifact.label} with {artifact.sha256[:12]}….",
                hint=_RECORD_AGAIN,
            )
        self.golden = golden
        self.runtime = f"{self.card.runtime} (recorded)"
        self.versions = self.card.versions
        self.settings = self.card.settings
        self._names = {digest: name for name, digest in self.card.pixels_sha256.items()}
        self._arrays = _read_arrays(golden, self.card)
        self._outputs = tuple(artifact.output_names)

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> the recorded logits.

        Raises:
            DataError: an image that was not recorded, or was decoded otherwise there.
        """
        rows = []
        for image in images:
            name = self._names.get(_hash_pixels(image))
            if name is None:
                raise DataError(
                    f"{self.golden.name}: holds no answer to this image: it was not recorded, or another "
                    "version of the image library decoded it otherwise.",
                    hint=_RECORD_AGAIN,
                )
            rows.append({output: self._arrays[f"{name}/{output}"] for output in self._outputs})
        return {output: np.concatenate([row[output] for row in rows]) for output in self._outputs}

    def close(self) -> None:
        """Nothing to give back."""


def read_card(golden: Path) -> GoldenCard:
    """The card of a golden, once its arrays are those it was written with.

    Raises:
        ArtifactError: missing or damaged.
    """
    card_file = card_path(golden)
    try:
        card = GoldenCard.model_validate_json(card_file.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{card_file}: a golden's card is missing.", hint=_RECORD_AGAIN) from error
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise ArtifactError(f"{card_file}: not a golden's card: {error}", hint=_RECORD_AGAIN) from error
    if not golden.is_file():
        raise ArtifactError(f"{golden}: the golden's arrays are missing.", hint=_RECORD_AGAIN)
    if hash_file(golden) != card.arrays_sha256:
        raise ArtifactError(
            f"{golden}: its bytes are not those its card {card_file.name} describes.", hint=_RECORD_AGAIN
        )
    return card


def _read_arrays(golden: Path, card: GoldenCard) -> dict[str, npt.NDArray[np.float32]]:
    outputs = [output.name for output in find_variant(card.artifact.variant).outputs]
    wanted = [f"{name}/{output}" for name in card.pixels_sha256 for output in outputs]
    try:
        with np.load(golden, allow_pickle=False) as stored:
            return {key: np.asarray(stored[key], np.float32) for key in wanted}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{golden}: not a golden's arrays: {error}", hint=_RECORD_AGAIN) from error


def compare(golden: Path, manifest: Path, weights: Path, dataset: Dataset, split: Split) -> GoldenComparison:
    """CoreML's recorded answers and the MIL reference's, against torch and against each other.

    Raises:
        ArtifactError: the golden is of another file, the message naming both; or something is damaged.
        DataError: the photographs are not the recorded ones.
    """
    from benchmark.parity import TorchReference, read_heads_trained
    from deploy.coreml_runners import MilRunner

    artifact, path = open_artifact(manifest)
    recorded = GoldenRunner(golden, artifact)
    images = dataset.describe(split)
    if images.sha256 != recorded.card.images.sha256:
        theirs = recorded.card.images
        raise DataError(
            f"{golden.name}: recorded on {theirs.name} ({theirs.count} images, SHA-256 "
            f"{theirs.sha256[:12]}…), not on {images.name} ({images.count} images, {images.sha256[:12]}…).",
            hint=_RECORD_AGAIN,
        )
    mil = MilRunner(artifact, path)
    torch_reference = TorchReference(find_variant(artifact.variant), weights, double=True)
    totals = {name: Comparison() for name in ("coreml", "mil_reference", "coreml_against_mil")}
    for name, image in _letterboxed(dataset.part(split), artifact):
        by_mil, by_coreml = mil.run(image[None]), recorded.run(image[None])
        truth = torch_reference.run(image[None])
        totals["coreml"].add(name, truth, by_coreml)
        totals["mil_reference"].add(name, truth, by_mil)
        totals["coreml_against_mil"].add(name, by_mil, by_coreml)
    heads = read_heads_trained(weights)
    limits = limits_of(artifact, "coreml")
    return GoldenComparison(
        coreml=_describe(recorded.runtime, totals["coreml"]),
        mil_reference=_describe(mil.runtime, totals["mil_reference"]),
        coreml_against_mil=_describe(
            f"{recorded.runtime} against {mil.runtime}", totals["coreml_against_mil"]
        ),
        failures=judge(f"{artifact.label} in {recorded.runtime}", totals["coreml"], limits, heads),
    )


def _describe(runtime: str, totals: Comparison) -> RuntimeFigures:
    return RuntimeFigures(
        runtime=runtime,
        outputs=totals.outputs(),
        flipped_permille=totals.flipped_permille,
        mask_iou=totals.mask_iou,
    )


app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
DataOption = Annotated[Path, typer.Option("--data", help="Folder of photographs, see docs/data.md.")]
SplitOption = Annotated[str, typer.Option("--split", help="Part of the folder: held-out, train or all.")]


def _open_split(data: Path, split: str) -> tuple[Dataset, Split]:
    parts = get_args(Split)
    if split not in parts:
        raise UnknownNameError("part of a data folder", split, parts)
    return open_dataset(data), cast(Split, split)


@app.command("record")
def record_command(
    model: Annotated[Path, typer.Argument(help="The .mlpackage; its manifest lies beside it.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Arrays to write (.npz); a card is written beside.")],
    split: SplitOption = "held-out",
    compute_units: Annotated[
        str, typer.Option("--compute-units", help="ALL, CPU_ONLY, CPU_AND_GPU or CPU_AND_NE.")
    ] = "ALL",
) -> None:
    """On a Mac: let CoreML execute a package and keep its answers."""
    with reporting():
        dataset, part = _open_split(data, split)
        card = record(manifest_path(model), dataset, part, out, compute_units=compute_units)
    typer.echo(f"{card.runtime}: {card.images.count} images of {card.artifact.label} in {out}")
    typer.echo(f"Take {out.name} and {card_path(out).name} along; `compare` reads both.")


@app.command("compare")
def compare_command(
    golden: Annotated[Path, typer.Argument(help="The recorded .npz; its card lies beside it.")],
    model: Annotated[Path, typer.Argument(help="The .mlpackage it was recorded from.")],
    data: DataOption,
    split: SplitOption = "held-out",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Default: the shipped weights of its variant.")
    ] = None,
) -> None:
    """Anywhere: CoreML's recorded answers beside the MIL reference's; exit code 1 when they break a limit."""
    with reporting():
        dataset, part = _open_split(data, split)
        artifact, _ = open_artifact(manifest_path(model))
        chosen = weights or weights_path(find_variant(artifact.variant))
        found = compare(golden, manifest_path(model), chosen, dataset, part)
        _show(found)
        if found.failures:
            raise CheckFailedError("\n".join(found.failures))


def _show(found: GoldenComparison) -> None:
    for figures, against in (
        (found.coreml, "torch"),
        (found.mil_reference, "torch"),
        (found.coreml_against_mil, "each other"),
    ):
        typer.echo(f"{figures.runtime}, against {against}:")
        for output in figures.outputs:
            psnr = "equal" if output.psnr_db is None else f"PSNR {output.psnr_db:.1f} dB"
            typer.echo(f"  {output.name:10} max-abs {output.max_abs:.3g}, {psnr}")
        typer.echo(f"  flipped {figures.flipped_permille:.3f} ‰, mask IoU {figures.mask_iou:.4f}")


if __name__ == "__main__":
    app()
