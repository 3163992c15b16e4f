"""`parity-check --bisect`: find the first layer of one file that does not compute what the network does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nailcore.artifact import MANIFEST_SUFFIX, Artifact, manifest_path, read_manifest
from nailcore.divergence_facts import BisectResult
from nailcore.errors import ArtifactError, UnknownNameError
from nailcore.facts import ArtifactRef, write_fact
from nailcore.storage import hash_file, hash_path
from nailtool.pipeline import Order, run_plan

IMAGES = 2  # the first one that diverges is told; two, in case a photo shows no nail at all


@dataclass(frozen=True)
class Bisection:
    """What was found about one file."""

    artifact: Artifact
    path: Path
    found_sha256: str
    result: BisectResult
    fact: Path | None  # where the result was kept for the report; None: the file is none of the folder's

    @property
    def changed(self) -> bool:
        """Whether the file is not the one its manifest describes."""
        return self.found_sha256 != self.artifact.sha256


def bisect_artifact(order: Order, given: Path, data: Path | None, engine: str = "") -> Bisection:
    """Look at the layers of an artefact one by one; its bytes need not be those its manifest describes.

    Args:
        order: where the weights and, without ``data``, the embedded images are.
        given: the artefact, or its manifest, in any folder.
        data: folder of photographs.
        engine: of its target; default: the usual one.

    Raises:
        ArtifactError: no manifest, no file, a file that its engine cannot open, or one whose layers are not
            the trained network's.
        UnknownNameError: its variant or the engine does not exist.
        MissingToolError: the engine is not here, or does not show its layers.
    """
    from benchmark.bisect import find_first_divergence
    from benchmark.parity import find_engine
    from deploy import find_target
    from nailcore.data.folder import open_dataset
    from nailcore.preprocess import letterbox

    manifest = given if given.name.endswith(MANIFEST_SUFFIX) else manifest_path(given)
    artifact = read_manifest(manifest)
    _refuse_other_networks(artifact)
    path = manifest.parent / artifact.file
    if not path.exists():
        raise ArtifactError(f"{path}: described by {manifest.name} but missing.")
    if artifact.variant not in order.registry.variants:
        raise UnknownNameError("variant", artifact.variant, order.registry.variants)
    variant = order.registry.variants[artifact.variant]
    chosen = find_engine(find_target(artifact.kind), engine)
    plan = order.plan
    if data is None:
        run_plan(order, [plan.embedded_stage()])
    dataset = open_dataset(plan.data_node(data).location)
    samples = dataset.part("test")[:IMAGES]
    images = [letterbox(s.load_image(), variant.height_px, variant.width_px) for s in samples]
    weights = order.registry.weights_path(variant)
    found = find_first_divergence(
        artifact, path, weights, np.stack(images), chosen.name, names=[sample.name for sample in samples]
    )
    result = BisectResult(
        artifact=ArtifactRef.of(artifact),
        weights_sha256=hash_file(weights),
        engine=chosen.name,
        images=dataset.describe("test"),
        found=found,
    )
    sha256 = hash_path(path)
    fact = None
    # A fact speaks of the file its hash names: one that was changed has none.
    if sha256 == artifact.sha256 and manifest.resolve().parent == plan.out_dir / artifact.variant:
        fact = plan.out_dir / "facts" / "divergence" / f"{path.name}.{chosen.name}.json"
        write_fact(fact, result)
    return Bisection(artifact, path, sha256, result, fact)


def _refuse_other_networks(artifact: Artifact) -> None:
    """Files whose layers differ from the trained network's on purpose: the first would always be blamed."""
    recipe = artifact.made_by.config.get("recipe", {})
    if recipe.get("compute_dtype") == "int8" and artifact.kind in ("onnx", "tflite"):
        reason = "integer layers are merged and rewritten before they are rounded"
    elif recipe.get("finetune") is not None:
        reason = "its kernels were trained on after the rounding"
    else:
        return
    raise ArtifactError(
        f"{artifact.label} cannot be compared layer by layer: {reason}.",
        hint="`parity-check` judges the whole file and checks its stored values; `nailtool sensitivity` says "
        "which layer's rounding costs what; --bisect takes the fp32 file it was made from.",
    )
