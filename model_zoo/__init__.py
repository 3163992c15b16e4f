"""The shipped variants: one TOML declaration each, and the trained weights each names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from nailcore.errors import UnknownNameError
from nailcore.variant import Variant, load_variant

ROOT = Path(__file__).parent
VARIANTS_DIR = ROOT / "variants"
WEIGHTS_DIR = ROOT / "weights"


@cache
def load_variants() -> dict[str, Variant]:
    """All declared variants by name, sorted by depth (deep first), then size (large first)."""
    found = [load_variant(path) for path in sorted(VARIANTS_DIR.glob("*.toml"))]
    found.sort(key=lambda v: (-v.encoder_layers, -v.height_px, v.name))
    return {variant.name: variant for variant in found}


def find_variant(name: str) -> Variant:
    """One variant by name.

    Raises:
        UnknownNameError: with the nearest names.
    """
    variants = load_variants()
    if name not in variants:
        raise UnknownNameError("variant", name, variants)
    return variants[name]


def weights_path(variant: Variant) -> Path:
    """The safetensors file this variant is built from."""
    return WEIGHTS_DIR / f"{variant.weights}.safetensors"
