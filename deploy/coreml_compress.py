"""Smaller CoreML packages: weights as palettes or 8-bit codes, and constants said once."""

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


def share_constants(block: Any) -> None:
    """Keep one of all small constants that are equal, in place: strides and pads say the same 60 times.

    ``block``: an operation list of the specification (``MIL_pb2.Block``). Constants in the weight file
    and outputs of the program stay. What is shared gets a short name: it is no layer's any more.
    """
    kept: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    operations = []
    for op in block.operations:
        for binding in op.inputs.values():
            for argument in binding.arguments:
                if argument.WhichOneof("binding") == "name" and argument.name in renamed:
                    argument.name = renamed[argument.name]
        if op.type == "const" and not op.attributes["val"].HasField("blobFileValue"):
            name = op.outputs[0].name
            if name in block.outputs:
                operations.append(op)
                continue
            value = op.attributes["val"].SerializeToString(deterministic=True)
            known = value in kept
            renamed[name] = kept.setdefault(value, f"constant_{len(kept)}")
            if known:
                continue
            op.outputs[0].name = renamed[name]
            op.attributes["name"].immediateValue.tensor.strings.values[0] = renamed[name]
        operations.append(op)
    copies = []
    for op in operations:
        copied = type(op)()
        copied.CopyFrom(op)
        copies.append(copied)
    del block.operations[:]
    block.operations.extend(copies)


def find_sizes(tables: Mapping[str, Table | Codes]) -> dict[str, int]:
    """How many kernels have indices of how many bits, for the manifest."""
    widths = [table.bits if isinstance(table, Table) else 8 for table in tables.values()]
    bits, counts = np.unique(widths, return_counts=True)
    return {f"{bit}-bit": int(count) for bit, count in zip(bits, counts, strict=True)}
