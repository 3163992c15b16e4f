"""The stages of the pipeline: which files each one reads and writes, and what makes it stale."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nailcore.artifact import artifact_path, manifest_path
from nailcore.errors import WeightsError
from nailcore.runtime import Engine, Target
from nailcore.variant import Variant
from nailtool.defaults import DEFAULT_SETTINGS
from nailtool.inputs import (
    SPLITS,
    TOOLS,
    DataNode,
    config_node,
    list_resources,
    sources_node,
    tools_node,
)
from nailtool.nodes import FileNode, Node, ValueNode, hash_content
from nailtool.rooms import Registry
from nailtool.stage import Stage
from quantize import Recipe

PARITY_DIR = "facts/parity"


@dataclass(frozen=True)
class Unit:
    """One artefact to be: a variant in a precision for a target."""

    variant: Variant
    kind: str
    recipe: Recipe
    path: Path

    @property
    def name(self) -> str:
        """How people and the lock file call it: ``nail55-480 onnx fp32``."""
        return f"{self.variant.name} {self.kind} {self.recipe.name}"

    @property
    def stem(self) -> str:
        """What the name of every fact about it begins with."""
        return f"{self.variant.name}.{self.kind}.{self.recipe.name}"

    @property
    def manifest(self) -> Path:
        """The manifest beside the artefact."""
        return manifest_path(self.path)


class Plan:
    """Makes stages for one registry and one output folder."""

    def __init__(self, registry: Registry, out_dir: Path, data: Path | None = None) -> None:
        self.registry = registry
        self.out_dir = out_dir
        self.data = data  # whose training part recipes are calibrated on; None: the embedded set

    # -- artefacts ------------------------------------------------------------------------
    def list_units(
        self, variants: Iterable[Variant], kinds: Iterable[str], recipes: Iterable[Recipe]
    ) -> list[Unit]:
        """Every artefact of a selection, ordered so that parents come first."""
        recipes = list(recipes)
        kinds = sorted(kinds, key=lambda kind: self.find_target(kind).PARENT != "weights")
        return [
            self._unit(variant, kind, recipe)
            for kind in kinds
            for variant in variants
            for recipe in recipes
            if kind in recipe.targets
        ]

    def _unit(self, variant: Variant, kind: str, recipe: Recipe) -> Unit:
        path = artifact_path(self.out_dir, variant.name, recipe.name, self.find_target(kind).SUFFIX)
        return Unit(variant, kind, recipe, path)

    def find_target(self, kind: str) -> Target:
        """The target module of a kind."""
        return cast(Target, importlib.import_module(self.registry.targets[kind]))

    def _parent(self, unit: Unit) -> Unit | None:
        """The artefact a unit is converted from; None when that is the weights file."""
        kind = self.find_target(unit.kind).PARENT
        if kind == "weights":
            return None
        return self._unit(unit.variant, kind, self.registry.recipes["fp32"])

    def list_stage_units(self, units: Sequence[Unit]) -> list[Unit]:
        """The units and the parents they need, each once, parents first."""
        wanted: dict[str, Unit] = {}
        for unit in units:
            parent = self._parent(unit)
            if parent is not None:
                wanted.setdefault(parent.name, parent)
            wanted.setdefault(unit.name, unit)
        return list(wanted.values())

    def build_stages(self, units: Sequence[Unit]) -> list[Stage]:
        """Conversion stages of the units and of the parents they need, each after what prepares it."""
        wanted = self.list_stage_units(units)
        prepared = {
            self.prepared_folder(unit): self._preparation_stage(unit)
            for unit in wanted
            if unit.recipe.needs_preparation
        }
        return [*prepared.values(), *(self._build_stage(unit) for unit in wanted)]

    def prepared_folder(self, unit: Unit) -> Path:
        """What a recipe prepares for a variant, whatever the target."""
        return self.out_dir / "prepared" / f"{unit.variant.name}.{unit.recipe.name}"

    def _preparation_stage(self, unit: Unit) -> Stage:
        weights, data = self.weights_nodes(unit.variant), self.data_node(self.data)
        folder = self.prepared_folder(unit)
        return Stage(
            name=f"prepare {unit.variant.name} {unit.recipe.name}",
            family="torch",
            job="nailtool.jobs:prepare_recipe",
            arguments={
                "variant": unit.variant,
                "recipe": unit.recipe,
                "weights": weights[0].location,
                "data": data.location,
                "out": folder,
            },
            inputs=(
                *weights,
                data,
                config_node(unit.variant, "variant"),
                config_node(unit.recipe, "recipe"),
                tools_node(*TOOLS["prepare"]),
                sources_node(["quantize.prepare"], list_resources(SPLITS)),
            ),
            products=(self.file_node(folder),),
            affinity=unit.variant.name,
        )

    def _build_stage(self, unit: Unit) -> Stage:
        parent = self._parent(unit)
        weights = self.weights_nodes(unit.variant)
        source: tuple[Node, ...] = weights if parent is None else (self.file_node(parent.path),)
        module = self.registry.targets[unit.kind]
        prepared = self.prepared_folder(unit) if unit.recipe.needs_preparation else None
        return Stage(
            name=unit.name,
            family=self.find_target(unit.kind).FAMILY,
            job="nailtool.jobs:convert",
            arguments={
                "target": module,
                "variant": unit.variant,
                "recipe": unit.recipe.model_dump(mode="json"),
                "parent": source[0].load(),
                "prepared": prepared,
                "out": unit.path,
            },
            inputs=(
                *source,
                *([] if prepared is None else [self.file_node(prepared)]),
                config_node(unit.variant, "variant"),
                config_node(unit.recipe, "recipe"),
                tools_node(*self.find_target(unit.kind).TOOLS),
                sources_node([module]),
            ),
            products=(self.file_node(unit.path), self.file_node(unit.manifest)),
            affinity=unit.variant.name,
        )

    def file_node(self, path: Path) -> FileNode:
        """A file or folder below the output folder."""
        return FileNode(path.relative_to(self.out_dir).as_posix(), path)

    def weights_nodes(self, variant: Variant) -> tuple[FileNode, ValueNode]:
        """The weights file, and the facts beside it: loading checks the one against the other."""
        path = self.registry.weights_path(variant)
        if not path.is_file():
            raise WeightsError(
                f"{path}: the weights of {variant.name} are missing.",
                hint="Install nailtool again, or train them: see `nailtool train --help`.",
            )
        facts = path.with_suffix(".json")
        # A value and no file node: that the facts appear or go away is a change as well.
        state = hash_content(facts) if facts.is_file() else "none"
        return FileNode(f"weights {path.name}", path), ValueNode(f"facts {facts.name}", state)

    # -- measurements ---------------------------------------------------------------------
    def data_node(self, data: Path | None, *, whole: bool = False) -> DataNode:
        """The user's data folder, or the embedded one; ``whole``: with all of its test images."""
        if data is not None:
            return DataNode("images of the data folder", data)
        if whole:
            return DataNode("all embedded images", self.out_dir / "embedded-whole")
        return DataNode("embedded images", self.out_dir / "embedded")

    def embedded_stage(self, *, whole: bool = False) -> Stage:
        """Unpacks the default data folder once."""
        node = self.data_node(None, whole=whole)
        return Stage(
            name=node.name,
            family="light",
            job="nailtool.jobs:unpack_embedded",
            arguments={"out": node.location, "whole": whole},
            inputs=(
                sources_node(["nailcore.data.synth.embedded"], list_resources("nailcore/data/synth/pack")),
            ),
            products=(node,),
        )

    def parity_fact(self, unit: Unit, engine: str) -> Path:
        """Where the parity of a unit, executed by an engine, is written."""
        return self.out_dir / PARITY_DIR / f"{unit.stem}.{engine}.json"

    def list_engines(self, kind: str) -> tuple[Engine, ...]:
        """All engines of a target, the usual one first."""
        return self.find_target(kind).ENGINES

    def find_sibling(self, unit: Unit) -> Unit | None:
        """The same variant and target in fp32, which proves the conversion apart from the rounding."""
        fp32 = self.registry.recipes["fp32"]
        return self._unit(unit.variant, unit.kind, fp32) if unit.recipe.name != "fp32" else None

    def accuracy_fact(self, variant: Variant) -> Path:
        """Where the accuracy of a variant is written."""
        return self.out_dir / "facts" / "accuracy" / f"{variant.name}.json"

    def accuracy_stage(self, variant: Variant, data: DataNode) -> Stage:
        """Evaluates one variant's weights on the held-out images."""
        weights, fact = self.weights_nodes(variant), self.accuracy_fact(variant)
        overlay_dir = fact.with_suffix("")
        return Stage(
            name=f"accuracy {variant.name}",
            family="torch",
            job="nailtool.jobs:evaluate_accuracy",
            arguments={
                "variant": variant,
                "weights": weights[0].location,
                "data": data.location,
                "fact": fact,
                "overlay_dir": overlay_dir,
            },
            inputs=(
                *weights,
                data,
                config_node(variant, "variant"),
                tools_node(*TOOLS["accuracy"]),
                sources_node(["benchmark.accuracy"], list_resources(SPLITS)),
            ),
            products=(self.file_node(fact), self.file_node(overlay_dir)),
        )

    def latency_fact(self, device: str, unit: Unit) -> Path:
        """Where the latency of a unit on a device is written."""
        return self.out_dir / "facts" / "latency" / device / f"{unit.stem}.json"

    def latency_stage(
        self, device: str, units: Sequence[Unit], settings: Mapping[str, int], machine: Mapping[str, str]
    ) -> Stage:
        """Times all units of a device in one stage, because their rounds are interleaved.

        More rounds than the default are as good; after fewer, or with other threads, a plan with the
        default settings measures again. Rows marked invalid are kept and shown as such: on a machine
        that stays busy, measuring again would never end.
        """
        module = self.registry.devices[device]
        kinds = dict.fromkeys(unit.kind for unit in units)
        facts = [self.latency_fact(device, unit) for unit in units]
        return Stage(
            name=f"latency {device}",
            family=f"device {device}",
            job="nailtool.jobs:profile_device",
            arguments={
                "device": module,
                "manifests": [unit.manifest for unit in units],
                "facts": facts,
                "settings": dict(settings),
            },
            inputs=(
                *(self.file_node(unit.path) for unit in units),
                *(self.file_node(unit.manifest) for unit in units),
                *(ValueNode(key, value) for key, value in machine.items()),
                ValueNode("threads", str(settings["threads"])),
                ValueNode("rounds", _describe_rounds(settings["rounds"])),
                tools_node(*(tool for kind in kinds for tool in self.find_target(kind).RUNTIME_TOOLS)),
                sources_node(
                    [module, *(self.registry.targets[kind] for kind in kinds)],
                    [resource for kind in kinds for resource in self.find_target(kind).RESOURCES],
                ),
            ),
            products=tuple(self.file_node(fact) for fact in facts),
            exclusive=True,
        )

    def report_stage(self, report: Path, data: DataNode, context: Mapping[str, str]) -> Stage:
        """Renders the report from every manifest and fact there is now.

        Who asked and when is told in the report but makes no new one.
        """
        found = [
            *sorted(self.out_dir.glob("*/*.manifest.json")),
            *sorted((self.out_dir / "facts").rglob("*.json")),
        ]
        return Stage(
            name="report",
            family="light",
            job="nailtool.jobs:render_report",
            arguments={
                "out_dir": self.out_dir,
                "context": dict(context),
                "data": data.location,
                "report": report,
            },
            inputs=(
                *(self.file_node(path) for path in found),
                data,
                ValueNode("nailtool's source", context["source_sha256"]),
                tools_node("nailtool", *TOOLS["report"]),
                sources_node(
                    ["benchmark.report"],
                    [*list_resources("benchmark/report"), *list_resources(SPLITS)],
                ),
            ),
            products=(FileNode(f"report {report.name}", report),),
        )


def _describe_rounds(rounds: int) -> str:
    default = DEFAULT_SETTINGS["rounds"]
    return f"at least {default}" if rounds >= default else f"only {rounds}"
