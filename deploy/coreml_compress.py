"""Smaller CoreML packages: weights as palettes or 8-bit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.coremltools_import import import_coremltools
from nailcore.errors import ConversionError
from quantize.palettes import Codes, Table

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

# It writes a scale per output channel into the table: one table per channel, larger than what it replaces.
_HARMFUL_PASS = "common::canonicalize_quantized_lut_pattern"  # noqa: S105


def attach_tables(network: ExportForm, tables: Mapping[str, Table | Codes]) -> None:
    """Tell coremltools' converter, by buffers beside each kernel, which table it is made of.

    Kernels become the tables' values, in place.

    Raises:
        ConversionError: a table is of no layer, or of another shape.
    """
    import torch

    layers = dict(network.named_modules())
    for name, table in tables.items():
        layer = layers.get(name)
        if not isinstance(layer, torch.nn.Conv2d) or tuple(layer.weight.shape) != table.indices.shape:
            raise ConversionError(
                f"Palettes were prepared for '{name}' {list(table.indices.shape)}, which is no such layer.",
                hint="Run `nailtool build-variants`; it will be made again.",
            )
        layer.weight.data = torch.from_numpy(table.values)
        if isinstance(table, Codes):
            layer.register_buffer("_COREML_/weight/compression_type", torch.tensor([3]))  # linear codes
            layer.register_buffer("_COREML_/weight/quantization_n_bits", torch.tensor(8))
            layer.register_buffer(
                "_COREML_/weight/quantization_scale", torch.from_numpy(table.scale[:, None])
            )
            layer.register_buffer(
                "_COREML_/weight/zero_point", torch.zeros(len(table.scale), 1, dtype=torch.int8)
            )
            continue
        groups, count = table.entries.shape
        layer.register_buffer("_COREML_/weight/compression_type", torch.tensor([2]))  # a palette
        layer.register_buffer(
            "_COREML_/weight/lut", torch.from_numpy(table.entries.reshape(groups, 1, 1, 1, count, 1))
        )
        if table.scale is not None:
            layer.register_buffer(
                "_COREML_/weight/palettization_scale", torch.from_numpy(table.scale[:, None])
            )
    network.register_buffer("_COREML_/metadata_version", torch.tensor(1))


def make_pipeline() -> Any:
    """coremltools' own passes, without the one that bloats tables with scales."""
    pipeline = import_coremltools().PassPipeline.DEFAULT
    pipeline.remove_passes({_HARMFUL_PASS})
    return pipeline


def name_target(tables: Mapping[str, Table | Codes]) -> str:
    """The oldest system that reads the tables: groups, scales and 3-bit indices are iOS 18's."""
    newer = any(
        isinstance(table, Table) and (table.scale is not None or len(table.entries) > 1 or table.bits == 3)
        for table in tables.values()
    )
    return "iOS18" if newer else "iOS16"


def find_sizes(tables: Mapping[str, Table | Codes]) -> dict[str, int]:
    """How many kernels have indices of how many bits, for the manifest."""
    widths = [table.bits if isinstance(table, Table) else 8 for table in tables.values()]
    bits, counts = np.unique(widths, return_counts=True)
    return {f"{bit}-bit": int(count) for bit, count in zip(bits, counts, strict=True)}
