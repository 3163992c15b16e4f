"""Weights on disk: reading encoder initialisations (.npz) and trained networks (.safetensors)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from nailcore.errors import ArtifactError, WeightsError
from nailcore.facts import WeightsFacts, read_fact
from nailcore.nets.cascade import Cascade, build_cascade
from nailcore.nets.encoder import FIRST_ENCODER, as_encoder
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant


def load_weights(variant: Variant, path: Path) -> Cascade:
    """A trained cascade in eval mode.

    Raises:
        WeightsError: missing, damaged, or of another network (naming the differing layers).
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no weights file for {variant.name}.",
            hint="Train one with `nailtool train`, or restore model_zoo/weights from the repository.",
        )
    state = read_state(path)
    check_encoder(variant.encoder, path)
    network = build_cascade(variant)
    check_state(network, state, path)
    network.load_state_dict(state)
    return network.eval()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by layer.

    Raises:
        WeightsError: missing, damaged, or not the file its facts describe.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file: {error}",
            hint="The file is damaged: restore it from the repository or train again.",
        ) from error
    check_recorded_hash(path)
    return dict(state)


def read_encoder(path: Path) -> str:
    """The encoder that a weights file records; files from before there was a choice hold the first one.

    Raises:
        WeightsError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {}).get("nailtool", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file: {error}",
            hint="The file is damaged: restore it from the repository or train again.",
        ) from error
    return str(noted.get("encoder", FIRST_ENCODER))


def check_encoder(wanted: str, path: Path) -> None:
    """Refuse the weights of another encoder by its name, before hundreds of layers differ.

    Raises:
        WeightsError: they are of another encoder, or the file cannot be read.
    """
    found = read_encoder(path)
    if found != wanted:
        raise WeightsError(
            f"{path}: holds the encoder {found}, but {wanted} is asked for.",
            hint=f'Choose it with --encoder {found}, or in the variant\'s file: encoder = "{found}".',
        )


def check_recorded_hash(path: Path) -> None:
    """Compare a weights file with the facts beside it (``nail55-480.json``), where there are any.

    A flipped bit in a safetensors file still loads; only the recorded hash tells.

    Raises:
        WeightsError: the file is not the one its facts describe, or the facts are damaged.
    """
    facts_path = path.with_suffix(".json")
    if not facts_path.is_file():
        return
    try:
        facts, found = read_fact(facts_path, WeightsFacts), hash_file(path)
    except ArtifactError as error:
        raise WeightsError(
            f"{error.message}", hint="Restore it from the repository, or train again."
        ) from error
    if found != facts.sha256:
        raise WeightsError(
            f"{path}: its bytes changed since it was trained "
            f"(SHA-256 {found[:12]}…, {facts_path.name} says {facts.sha256[:12]}…).",
            hint="The file is damaged: restore it from the repository, or train again.",
        )


def check_state(network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Compare names and shapes; raises WeightsError naming the first differences."""
    own = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    if own == found:
        broken = [name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
        if broken:
            raise WeightsError(f"{path}: holds NaN or infinite values in {', '.join(broken[:3])}.")
        return
    missing = sorted(own.keys() - found.keys())
    extra = sorted(found.keys() - own.keys())
    other = sorted(n for n in own.keys() & found.keys() if own[n] != found[n])
    parts = []
    if missing:
        parts.append(f"{len(missing)} layers missing (first: {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} unknown layers (first: {extra[0]})")
    if other:
        parts.append(
            f"{len(other)} of another shape (first: {other[0]} {found[other[0]]} for {own[other[0]]})"
        )
    raise WeightsError(
        f"{path}: weights of another network: {'; '.join(parts)}.",
        hint="Are these the weights of the other depth (55 or 43 layers)?",
    )


def save_weights(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors, atomically and with the same bytes for the same weights."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as scratch:
        # One key alone: safetensors writes several in random order, and equal weights must make
        # equal bytes.
        # Python writes the file: safetensors' own writer hides a full disk behind its own error.
        scratch.write_bytes(save(state, metadata={"nailtool": json.dumps(metadata, sort_keys=True)}))


def init_encoders(network: Cascade, path: Path) -> int:
    """Initialise every branch from a pretrained backbone, as it reads them; returns convolutions loaded.

    Raises:
        WeightsError: missing, damaged, or of another backbone.
    """
    return sum(as_encoder(branch).load_init(path) for branch in network.encoders())
