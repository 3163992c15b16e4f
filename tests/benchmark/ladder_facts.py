"""Made-up ladders in an output folder for tests of the report. Nothing here was measured.

``python -m tests.benchmark.ladder_facts FOLDER`` writes a folder and its report, to be looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmark.gate import judge_file
from benchmark.gate_rules import load_rules
from benchmark.report import collect_facts, render_report, write_report
from nailcore.artifact import Artifact, artifact_path, write_manifest
from nailcore.facts import ImageSet, ParityResult, write_fact
from nailcore.gate_facts import GateVerdict
from tests.benchmark import gate_cases
from tests.benchmark.parity_facts import find_artifact, write_rich_tree
from tests.benchmark.report_facts import SUFFIXES, fact_path, make_context

STORED = (  # recipe, share of bytes, per cent lost
    ("fp16", 0.5, (0.0, 0.1)),
    ("int8-weights", 0.26, (0.1, 0.2, -0.1)),
    ("palette-6", 0.2, (0.3, 0.1, 0.6)),
    ("palette-4", 0.14, (1.0, 4.0, 0.2)),
)
RUNGS = tuple((recipe, size, lost) for recipe, _, size, lost, *_ in gate_cases.LADDER)


def add_ladder(root: Path, variant: str, images: ImageSet) -> list[GateVerdict]:
    """Quantized ONNX files, timed, and Core ML files, not timed, with the verdicts about them."""
    written = []
    for kind, rungs in (("onnx", RUNGS), ("coreml", STORED)):
        fp32 = find_artifact(root, variant, kind, "fp32")
        known = {"fp32": fp32} | (
            {"fp16": find_artifact(root, variant, kind, "fp16")} if kind == "coreml" else {}
        )
        files = {r: known.get(r) or _add_file(root, fp32, r, size) for r, size, _ in rungs}
        shares = {recipe: share for recipe, _, _, _, share, _, _ in gate_cases.LADDER}
        run = gate_cases.make_run([(file, 47.0 * shares[r]) for r, file in files.items() if r in shares])
        for recipe, _, lost in rungs:
            parity = _make_parity(root, files[recipe], lost, images)
            verdict = judge_file(
                files[recipe],
                None if recipe == "fp32" else fp32,
                parity,
                load_rules(),
                runs=[run] if kind == "onnx" else [],
            )
            write_fact(fact_path(root, "gate", variant, kind, recipe), verdict)
            written.append(verdict)
    return written


def _add_file(root: Path, fp32: Artifact, recipe: str, size: float) -> Artifact:
    path = artifact_path(root, fp32.variant, recipe, SUFFIXES[fp32.kind])
    path.write_bytes(path.name.encode())
    integer = recipe.startswith("int8") and fp32.kind == "onnx"
    names = [r for r, *_ in RUNGS]
    declared = {
        "name": recipe,
        "summary": f"what {recipe} does",
        "rung": names.index(recipe) if recipe in names else 0,
        "weights_dtype": "int8",
        "compute_dtype": "int8" if integer else "float32",
    }
    made_by = fp32.made_by.model_copy(update={"config": {**fp32.made_by.config, "recipe": declared}})
    artifact = fp32.model_copy(
        update={
            "file": path.name,
            "recipe": recipe,
            "sha256": gate_cases.sha(path.name),
            "size_bytes": round(fp32.size_bytes * size),
            "made_by": made_by,
        }
    )
    write_manifest(path, artifact)
    return artifact


def _make_parity(root: Path, artifact: Artifact, lost: tuple[float, ...], images: ImageSet) -> ParityResult:
    status = "failed" if max(lost) > 50 else "passed"
    parity = gate_cases.make_parity(artifact, lost=lost, status=status, images=images.count)
    usual = ParityResult.model_validate_json(
        fact_path(root, "parity", artifact.variant, artifact.kind, "fp32").read_bytes()
    )
    parity = parity.model_copy(
        update={"images": images, "weights_sha256": usual.weights_sha256, "engine": usual.engine}
    )
    path = fact_path(root, "parity", artifact.variant, artifact.kind, artifact.recipe)
    if not path.is_file():
        write_fact(path, parity)
    return parity


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shown = write_rich_tree(folder, names=("nail55-480", "nail43-288"))
    for name in ("nail55-480", "nail43-288"):
        add_ladder(folder, name, shown)
    write_report(folder / "report.html", render_report(collect_facts(folder, make_context(shown))))
