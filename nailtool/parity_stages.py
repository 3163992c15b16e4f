"""The stages of `parity-check`: files in engines, conversions step by step, what surrounds the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nailcore.runtime import Engine
from nailcore.variant import Variant
from nailtool.inputs import (
    SPLITS,
    TOOLS,
    DataNode,
    config_node,
    list_resources,
    sources_node,
    tools_node,
)
from nailtool.nodes import FileNode, ValueNode
from nailtool.stage import Stage
from nailtool.stages import Plan, Unit

LIMITS = "benchmark/limits.toml"


def parity_stage(
    plan: Plan,
    unit: Unit,
    data: DataNode,
    engine: Engine,
    place: Mapping[str, str],
    *,
    sibling: Unit | None = None,
    golden: Path | None = None,
) -> Stage:
    """Checks one artefact, executed by one engine, against the trained network.

    ``place`` names what executes it here beside Python distributions, e.g. the browser's version;
    ``golden`` holds what the engine answered elsewhere, and stands in for it.
    """
    weights, fact = plan.weights_nodes(unit.variant), plan.parity_fact(unit, engine.name)
    target, heatmap_dir = plan.find_target(unit.kind), fact.with_suffix("")
    files = [unit.path, unit.manifest] + ([sibling.path, sibling.manifest] if sibling else [])
    recorded = [golden, golden.with_suffix(".json")] if golden else []
    return Stage(
        name=f"parity {unit.name} {engine.name}",
        family="torch",
        job="nailtool.jobs:check_parity",
        arguments={
            "manifest": unit.manifest,
            "weights": weights[0].location,
            "data": data.location,
            "engine": engine.name,
            "fact": fact,
            "heatmap_dir": heatmap_dir,
            "golden": golden,
        },
        inputs=(
            *map(plan.file_node, files),
            *(FileNode(f"golden {path.name}", path) for path in recorded),
            *weights,
            data,
            config_node(unit.variant, "variant"),
            *(ValueNode(key, value) for key, value in place.items()),
            ValueNode("engine", f"{engine.name}, {_describe_limit(engine)}"),
            ValueNode("answers", "recorded elsewhere" if golden else "given here"),
            tools_node(*TOOLS["parity"], *target.RUNTIME_TOOLS),
            sources_node(
                ["benchmark.parity", plan.registry.targets[unit.kind], *_list_gates(unit.kind)],
                (LIMITS, *list_resources(SPLITS), *target.RESOURCES),
            ),
        ),
        products=(plan.file_node(fact), plan.file_node(heatmap_dir)),
        affinity=unit.variant.name,
    )


def _describe_limit(engine: Engine) -> str:
    return "all images" if engine.image_limit is None else f"first {engine.image_limit} images"


def _list_gates(kind: str) -> list[str]:
    from benchmark.parity import GATES

    return [GATES[kind]] if kind in GATES else []


def prepost_fact(plan: Plan, variant: Variant) -> Path:
    """Where the stages around the network of a variant are written."""
    return plan.out_dir / "facts" / "prepost" / f"{variant.name}.json"


def prepost_stage(
    plan: Plan,
    variant: Variant,
    data: DataNode,
    *,
    browsers: Sequence[str],
    place: Mapping[str, str],
    packages: Sequence[Unit],
    ios_dumps: Sequence[Path],
) -> Stage:
    """Compares pre- and post-processing of browsers, packages and the iOS app with Python's.

    ``packages`` are built Core ML files, whose image input is compared; ``ios_dumps`` were recorded by
    the app.
    """
    weights, fact = plan.weights_nodes(variant), prepost_fact(plan, variant)
    return Stage(
        name=f"stages around {variant.name}",
        family="torch",
        job="nailtool.jobs:check_prepost",
        arguments={
            "variant": variant,
            "weights": weights[0].location,
            "data": data.location,
            "engines": list(browsers),
            "packages": [unit.path for unit in packages],
            "ios_dumps": list(ios_dumps),
            "fact": fact,
        },
        inputs=(
            *weights,
            data,
            *(plan.file_node(unit.path) for unit in packages),
            *(FileNode(f"iOS dump {path.name}", path) for path in ios_dumps),
            config_node(variant, "variant"),
            *(ValueNode(key, value) for key, value in place.items()),
            ValueNode("browsers", ", ".join(browsers)),
            tools_node(*TOOLS["parity"], "playwright", "selenium", "websockets"),
            sources_node(["benchmark.prepost"], (LIMITS, "deploy/web/bundle", *list_resources(SPLITS))),
        ),
        products=(plan.file_node(fact),),
        affinity=variant.name,
    )


def conversion_fact(plan: Plan, unit: Unit) -> Path:
    """Where the steps of a unit's conversion are written."""
    return plan.out_dir / "facts" / "stages" / f"{unit.stem}.json"


def conversion_stage(plan: Plan, unit: Unit, data: DataNode, place: Mapping[str, str]) -> Stage:
    """Compares each step of a unit's conversion with the one before it."""
    weights, fact = plan.weights_nodes(unit.variant), conversion_fact(plan, unit)
    targets = [plan.find_target(unit.kind)]
    while targets[-1].PARENT != "weights":
        targets.append(plan.find_target(targets[-1].PARENT))
    tools = [tool for target in targets for tool in (*target.TOOLS, *target.RUNTIME_TOOLS)]
    return Stage(
        name=f"steps to {unit.name}",
        family="torch",
        job="nailtool.jobs:compare_conversion",
        arguments={
            "manifest": unit.manifest,
            "variant": unit.variant,
            "recipe": unit.recipe.model_dump(mode="json"),
            "weights": weights[0].location,
            "data": data.location,
            "out_dir": plan.out_dir,
            "fact": fact,
        },
        inputs=(
            plan.file_node(unit.path),
            plan.file_node(unit.manifest),
            *weights,
            data,
            config_node(unit.variant, "variant"),
            config_node(unit.recipe, "recipe"),
            *(ValueNode(key, value) for key, value in place.items()),
            tools_node(*dict.fromkeys((*TOOLS["parity"], *tools))),
            sources_node(
                [
                    "benchmark.conversion_stages",
                    *(plan.registry.targets[target.KIND] for target in targets),
                ],
                (*list_resources(SPLITS), *(path for target in targets for path in target.RESOURCES)),
            ),
        ),
        products=(plan.file_node(fact),),
        affinity=unit.variant.name,
    )
