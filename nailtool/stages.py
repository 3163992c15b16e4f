"""The stages of the pipeline: which files each one reads and writes, and what makes it stale."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nailcore.artifact import artifact_path, manifest_path
from nailcore.errors import WeightsError
from nailcore.variant import Variant
from nailtool.defaults import DEFAULT_SETTINGS
from nailtool.nodes import SOURCE_NODE, TOOLS_NODE, FileNode, Node, ValueNode, hash_content
from nailtool.rooms import Registry
from nailtool.shadow import HOME
from nailtool.sources import hash_sources
from nailtool.stage import Stage
from quantize import Recipe

# Distributions whose version decides what a stage produces; a target names its own in TOOLS.
TOOLS: Mapping[str, tuple[str, ...]] = {
    "parity": ("torch", "numpy", "opencv-python-headless"),
    "accuracy": ("torch", "numpy", "opencv-python-headless", "scipy"),
    "embedded": ("numpy", "opencv-python-headless", "scipy"),
    "report": ("jinja2", "pydantic"),
}
RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime",),
    "tfjs": ("playwright",),
    "tflite": ("ai-edge-litert",),
}
# torch and tensorflow do not share a process: their OpenMP and protobuf runtimes collide.
FAMILIES: Mapping[str, str] = {"onnx": "torch", "coreml": "torch", "tfjs": "tensorflow", "tflite": "tensorflow"}
# What is no Python source and yet decides a result: pages a runner serves, limits it is judged by.
RESOURCES: Mapping[str, tuple[str, ...]] = {"tfjs": ("deploy/web/bundle",)}
LIMITS = "benchmark/limits.toml"
SPLITS = "nailcore/data/splits"  # which images of the known public sets are held out
DATA_PARTS = ("images", "annotations.json", "masks", "dataset.json", "split.json")


@dataclass(frozen=True)
class DataNode(FileNode):
    """A data folder: only the parts that commands read count, and its name, which facts quote."""

    def state(self) -> str | None:
        """Content hash over images, masks, card and split; None when missing."""
        if not (self.location / "images").is_dir():
            return None
        digest = hashlib.sha256(self.location.resolve().name.encode())
        for part in DATA_PARTS:
            if (self.location / part).exists():
                digest.update(f"{hash_content(self.location / part)}  {part}\n".encode())
        return digest.hexdigest()


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
    def fact_name(self) -> str:
        """File name of every fact about it."""
        return f"{self.variant.name}.{self.kind}.{self.recipe.name}.json"

    @property
    def manifest(self) -> Path:
        """The manifest beside the artefact."""
        return manifest_path(self.path)


@cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# One node for all tools and one for all sources of a stage, as JSON: pytask's bookkeeping costs per node.
def _tools(*distributions: str) -> ValueNode:
    return ValueNode(TOOLS_NODE, _as_json({name: _version(name) for name in distributions}))


def _sources(entries: Iterable[str], resources: Iterable[str] = ()) -> ValueNode:
    found = hash_sources(entries)
    for path in resources:
        if (HOME / path).exists():
            found[path] = hash_content(HOME / path)
    return ValueNode(SOURCE_NODE, _as_json(found))


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _config(model: Variant | Recipe, kind: str) -> ValueNode:
    return ValueNode(f"{kind} {model.name}", _as_json(model.model_dump(mode="json")))


class Plan:
    """Makes stages for one registry and one output folder."""

    def __init__(self, registry: Registry, out_dir: Path) -> None:
        self.registry = registry
        self.out_dir = out_dir

    # -- artefacts ------------------------------------------------------------------------
    def list_units(
        self, variants: Iterable[Variant], kinds: Iterable[str], recipes: Iterable[Recipe]
    ) -> list[Unit]:
        """Every artefact of a selection, ordered so that parents come first."""
        recipes = list(recipes)
        kinds = sorted(kinds, key=lambda kind: self._target(kind).PARENT != "weights")
        return [
            self._unit(variant, kind, recipe)
            for kind in kinds
            for variant in variants
            for recipe in recipes
            if kind in recipe.targets
        ]

    def _unit(self, variant: Variant, kind: str, recipe: Recipe) -> Unit:
        path = artifact_path(self.out_dir, variant.name, recipe.name, self._target(kind).SUFFIX)
        return Unit(variant, kind, recipe, path)

    def _target(self, kind: str) -> Any:
        return importlib.import_module(self.registry.targets[kind])

    def _target_tools(self, kind: str) -> tuple[str, ...]:
        return tuple(self._target(kind).TOOLS)

    def _parent(self, unit: Unit) -> Unit | None:
        """The artefact a unit is converted from; None when that is the weights file."""
        kind = self._target(unit.kind).PARENT
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
        """Conversion stages of the units and of the parents they need."""
        return [self._build_stage(unit) for unit in self.list_stage_units(units)]

    def _build_stage(self, unit: Unit) -> Stage:
        parent = self._parent(unit)
        weights = self._weights(unit.variant)
        source: tuple[Node, ...] = weights if parent is None else (self._file(parent.path),)
        module = self.registry.targets[unit.kind]
        return Stage(
            name=unit.name,
            family=FAMILIES.get(unit.kind, unit.kind),
            job="nailtool.jobs:convert",
            arguments={
                "target": module,
                "variant": unit.variant,
                "recipe": unit.recipe.model_dump(mode="json"),
                "parent": source[0].load(),
                "out": unit.path,
            },
            inputs=(
                *source,
                _config(unit.variant, "variant"),
                _config(unit.recipe, "recipe"),
                _tools(*self._target_tools(unit.kind)),
                _sources([module]),
            ),
            products=(self._file(unit.path), self._file(unit.manifest)),
            affinity=unit.variant.name,
        )

    def _file(self, path: Path) -> FileNode:
        return FileNode(path.relative_to(self.out_dir).as_posix(), path)

    def _weights(self, variant: Variant) -> tuple[FileNode, ValueNode]:
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
    def data_node(self, data: Path | None) -> DataNode:
        """The user's data folder, or the embedded one."""
        if data is None:
            return DataNode("embedded images", self.out_dir / "embedded")
        return DataNode("images of the data folder", data)

    def embedded_stage(self) -> Stage:
        """Renders the default data folder once."""
        node = self.data_node(None)
        return Stage(
            name="embedded images",
            family="light",
            job="nailtool.jobs:render_embedded",
            arguments={"out": node.location},
            inputs=(
                _tools(*TOOLS["embedded"]),
                _sources(["nailcore.data.synth"], _list_resources("nailcore/data/synth")),
            ),
            products=(node,),
        )

    def parity_fact(self, unit: Unit) -> Path:
        """Where the parity of a unit is written."""
        return self.out_dir / "facts" / "parity" / unit.fact_name

    def parity_stage(self, unit: Unit, data: DataNode, browser: str) -> Stage:
        """Checks one artefact against the trained network."""
        weights, fact = self._weights(unit.variant), self.parity_fact(unit)
        needs = [ValueNode("browser", browser)] if unit.kind == "tfjs" else []
        return Stage(
            name=f"parity {unit.name}",
            family="torch",
            job="nailtool.jobs:check_parity",
            arguments={
                "manifest": unit.manifest,
                "weights": weights[0].location,
                "data": data.location,
                "fact": fact,
            },
            inputs=(
                self._file(unit.path),
                self._file(unit.manifest),
                *weights,
                data,
                _config(unit.variant, "variant"),
                *needs,
                _tools(*TOOLS["parity"], *RUNTIMES.get(unit.kind, ())),
                _sources(
                    ["benchmark.parity", self.registry.targets[unit.kind]],
                    (LIMITS, *_list_resources(SPLITS), *RESOURCES.get(unit.kind, ())),
                ),
            ),
            products=(self._file(fact),),
            affinity=unit.variant.name,
        )

    def accuracy_fact(self, variant: Variant) -> Path:
        """Where the accuracy of a variant is written."""
        return self.out_dir / "facts" / "accuracy" / f"{variant.name}.json"

    def accuracy_stage(self, variant: Variant, data: DataNode) -> Stage:
        """Evaluates one variant's weights on the held-out images."""
        weights, fact = self._weights(variant), self.accuracy_fact(variant)
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
                _config(variant, "variant"),
                _tools(*TOOLS["accuracy"]),
                _sources(["benchmark.accuracy"], _list_resources(SPLITS)),
            ),
            products=(self._file(fact), self._file(overlay_dir)),
        )

    def latency_fact(self, device: str, unit: Unit) -> Path:
        """Where the latency of a unit on a device is written."""
        return self.out_dir / "facts" / "latency" / device / unit.fact_name

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
                *(self._file(unit.path) for unit in units),
                *(self._file(unit.manifest) for unit in units),
                *(ValueNode(key, value) for key, value in machine.items()),
                ValueNode("threads", str(settings["threads"])),
                ValueNode("rounds", _describe_rounds(settings["rounds"])),
                _tools(*(tool for kind in kinds for tool in RUNTIMES.get(kind, ()))),
                _sources(
                    [module, *(self.registry.targets[kind] for kind in kinds)],
                    [resource for kind in kinds for resource in RESOURCES.get(kind, ())],
                ),
            ),
            products=tuple(self._file(fact) for fact in facts),
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
                *(self._file(path) for path in found),
                data,
                ValueNode("nailtool's source", context["source_sha256"]),
                _tools("nailtool", *TOOLS["report"]),
                _sources(
                    ["benchmark.report"],
                    [*_list_resources("benchmark/report"), *_list_resources(SPLITS)],
                ),
            ),
            products=(FileNode(f"report {report.name}", report),),
        )


def _describe_rounds(rounds: int) -> str:
    default = DEFAULT_SETTINGS["rounds"]
    return f"at least {default}" if rounds >= default else f"only {rounds}"


def _list_resources(folder: str) -> list[str]:
    """Files of a package that are no Python source: templates, meshes."""
    return [
        path.relative_to(HOME).as_posix()
        for path in sorted((HOME / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    ]
