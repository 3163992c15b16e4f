"""Names of the layers that can be quantized: the convolutions of the network, as torch calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nailcore.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import nn

    from nailcore.nets.export_form import ExportForm


def list_convolutions(network: ExportForm) -> dict[str, nn.Conv2d]:
    """Torch module name -> convolution, in the order in which they are executed."""
    import torch
    from torch import nn

    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    found: dict[str, nn.Conv2d] = {}
    handles = [
        module.register_forward_pre_hook(lambda conv, _: found.setdefault(names[conv], conv) and None)
        for module in names
    ]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    return found


def choose_float_layers(keep_float: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Names that entries of ``keep_float`` mean: layers, or prefixes ending in ".".

    Raises:
        UnknownNameError: an entry that fits no layer, with the nearest names.
    """
    known = list(names)
    chosen = set()
    for entry in keep_float:
        fits = [name for name in known if name == entry or (entry.endswith(".") and name.startswith(entry))]
        if not fits:
            raise UnknownNameError("layer", entry, known)
        chosen.update(fits)
    return tuple(name for name in known if name in chosen)
