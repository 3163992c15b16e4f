"""Which MIL operations are supported, generated into docs/mil-ops.md: `python -m deploy.mil.coverage`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deploy.coremltools_import import import_coremltools
from deploy.mil import handlers as _handlers  # noqa: F401 - registers all handlers
from deploy.mil.constants import ARGUMENTS
from deploy.mil.registry import HANDLERS
from nailcore.storage import write_text

MARK = "<!-- Below this line: written by `python -m deploy.mil.coverage`. -->"
OPSETS = (15, 16, 17, 18)
_CONTROL = {"cond", "while_loop"}
_IN_PLACE = {"const"}  # read by the parser
_REASONS = {
    "conv_quantized": "experimental in coremltools, and its dequantization is not specified",
    "random_bernoulli": "its generator is not specified, so no two runtimes agree",
    "random_categorical": "its generator is not specified, so no two runtimes agree",
    "random_normal": "its generator is not specified, so no two runtimes agree",
    "random_uniform": "its generator is not specified, so no two runtimes agree",
    "read_state": "stateful models are refused when opened",
    "coreml_update_state": "stateful models are refused when opened",
    "_const_symbolic": "exists only inside coremltools while it converts",
}
_LISTS = ("make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write")


def list_known_operations() -> dict[str, dict[int, Any]]:
    """Every MIL operation that coremltools defines: name -> opset that changed it -> its class."""
    import_coremltools()
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    known: dict[str, dict[int, Any]] = {}
    for name, versions in SSAOpRegistry.core_ops.items():
        changed: dict[int, Any] = {}
        for target, definition in sorted(versions.items()):
            opset = max(int(target) + 9, OPSETS[0])
            if definition not in changed.values():
                changed[opset] = definition
        known[name] = changed
    return known


def find_arguments(definition: Any) -> set[str]:
    """Argument names of one version of an operation, but for functions, which files do not hold."""
    return {name for name in definition.input_spec.input_types if not name.startswith("_")}


def is_supported(name: str) -> bool:
    """Whether files with this operation can be executed."""
    return name in HANDLERS or name in ARGUMENTS or name in _CONTROL or name in _IN_PLACE


def _describe(name: str) -> str:
    if is_supported(name):
        return "yes"
    if name in _LISTS:
        return "no: lists of tensors are not modelled"
    return f"no: {_REASONS.get(name, 'not needed so far')}"


def _find_module(name: str) -> str:
    handler = HANDLERS.get(name)
    if handler is not None:
        module = handler.function.__module__
    elif name in ARGUMENTS:
        module = "deploy.mil.constants"
    elif name in _CONTROL:
        module = "deploy.mil.plan"
    else:
        module = "deploy.mil.program" if name in _IN_PLACE else ""
    return module.rpartition(".")[2]


def write_table() -> str:
    """The generated part of docs/mil-ops.md."""
    known = list_known_operations()
    count = sum(is_supported(name) for name in known)
    lines = [
        f"{count} of the {len(known)} operations that coremltools 9 defines are supported. ",
        "The opset columns say since which iOS release an operation exists (●) and which releases",
        "changed it (○); a supported operation is supported in all of them.",
        "",
        f"| operation | {' | '.join(f'iOS {o}' for o in OPSETS)} | supported | where |",
        f"|---|{':-:|' * len(OPSETS)}---|---|",
    ]
    for name in sorted(known):
        first = min(known[name])
        cells = ["●" if o == first else "○" if o in known[name] else "·" if o > first else "" for o in OPSETS]
        module = _find_module(name)
        where = f"`{module}`" if module else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_describe(name)} | {where} |")
    return "\n".join(lines) + "\n"


def update_document(path: Path) -> str:
    """The document with its generated part replaced; raises ValueError when the mark is missing."""
    head, mark, _ = path.read_text("utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{path} has no line {MARK!r}")
    return f"{head}{MARK}\n\n{write_table()}"


def main() -> None:
    """Rewrite docs/mil-ops.md."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/mil-ops.md")
    write_text(path, update_document(path))


if __name__ == "__main__":
    main()
