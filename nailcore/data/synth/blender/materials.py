"""Cycles materials: skin, nails, cloth, metal and surfaces, built from what a job says."""

from __future__ import annotations

from typing import Any

import bpy

Job = dict[str, Any]


class Graph:
    """A material's nodes, with as little ceremony as possible."""

    def __init__(self, name: str) -> None:
        self.material: Any = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.tree: Any = self.material.node_tree
        self.tree.nodes.clear()

    def add(self, kind: str, **inputs: Any) -> Any:
        """A node; sockets are set by name (spaces as underscores): a value, or another node's socket."""
        node = self.tree.nodes.new(kind)
        for key, value in inputs.items():
            self.put(node, key.replace("_", " "), value)
        return node

    def put(self, node: Any, key: str | int, value: Any) -> None:
        """Set or link one input."""
        socket = node.inputs[key]
        if hasattr(value, "is_linked"):
            self.tree.links.new(value, socket)
        else:
            socket.default_value = value

    def attribute(self, name: str) -> Any:
        """A vertex attribute's node."""
        node = self.add("ShaderNodeAttribute")
        node.attribute_name = name
        return node

    def math(self, operation: str, a: Any, b: Any = 0.0, *, clamp: bool = False) -> Any:
        """The socket of a scalar operation."""
        node = self.add("ShaderNodeMath")
        node.operation, node.use_clamp = operation, clamp
        self.put(node, 0, a)
        self.put(node, 1, b)
        return node.outputs[0]

    def noise(self, where: Any, scale: float, detail: float = 2.0) -> Any:
        """Smooth noise, 0..1."""
        return self.add("ShaderNodeTexNoise", Vector=where, Scale=scale, Detail=detail).outputs[0]

    def tint(self, colour: Any, factor: Any) -> Any:
        """A colour times a scalar."""
        node = self.add("ShaderNodeVectorMath")
        node.operation = "SCALE"
        self.put(node, 0, colour)
        self.put(node, "Scale", factor)
        return node.outputs[0]

    def mix(self, factor: Any, a: Any, b: Any) -> Any:
        """Linear mixture of two colours."""
        node = self.tree.nodes.new("ShaderNodeMix")
        node.data_type = "RGBA"
        self.put(node, 0, factor)
        self.put(node, 6, a)
        self.put(node, 7, b)
        return node.outputs[2]

    def bump(self, height: Any, distance_m: float, strength: float = 1.0) -> Any:
        """A normal bent by a height of 0..1 times ``distance_m``."""
        return self.add("ShaderNodeBump", Height=height, Distance=distance_m, Strength=strength).outputs[0]

    def finish(self, shader: Any) -> Any:
        """Connect the output; returns the material."""
        self.add("ShaderNodeOutputMaterial", Surface=shader)
        return self.material


def make_skin(spec: Job) -> Any:
    """Skin: vertex colours with fine mottling, pores and lines as bumps, light that bleeds red.

    Whatever is wider than a vertex comes as an attribute: noise nodes below a bump are worked out three
    times a sample, and were half of the time.
    """
    g = Graph("skin")
    rest = g.attribute("rest").outputs["Vector"]  # mm
    phase, depth, crease = g.add(
        "ShaderNodeSeparateXYZ", Vector=g.attribute("lines").outputs["Vector"]
    ).outputs
    # Skin's relief: a net of fine furrows and pores.
    net = g.add("ShaderNodeTexVoronoi", Vector=rest, Scale=0.85, Randomness=1.0)
    net.feature = "DISTANCE_TO_EDGE"
    furrow = g.math("MULTIPLY", g.math("MINIMUM", net.outputs["Distance"], 0.16), 5.0)
    pores = g.noise(rest, 2.2, 1.0)
    relief = g.math("ADD", g.math("MULTIPLY", furrow, 0.30), g.math("MULTIPLY", pores, 0.6))
    # Lines over joints: waves along the finger whose phase wanders; deep ones on the palm side.
    wave = g.math("POWER", g.math("ABSOLUTE", g.math("SINE", phase)), 0.6)
    wrinkle = g.math("MULTIPLY", g.math("SUBTRACT", wave, 1.0), depth)
    lines = g.math(
        "SUBTRACT", g.math("MULTIPLY", wrinkle, 3.4 * spec["wrinkle"]), g.math("MULTIPLY", crease, 3.0)
    )
    colour = g.attribute("albedo").outputs["Color"]
    fine = g.math("ADD", 0.86, g.math("MULTIPLY", g.noise(rest, 0.75, 2.0), 0.28))
    shade = g.math("ADD", 1.0, g.math("MULTIPLY", wrinkle, 0.40))
    shade = g.math("SUBTRACT", shade, g.math("MULTIPLY", crease, 0.25))
    node = g.add(
        "ShaderNodeBsdfPrincipled",
        Base_Color=g.tint(colour, g.math("MULTIPLY", fine, shade)),
        Roughness=0.62 - 0.13 * spec["gloss"],
        IOR=1.4,
        Normal=g.bump(g.math("ADD", relief, lines), 0.00010, 0.85),
        Specular_IOR_Level=0.38,
    )
    node.subsurface_method = "RANDOM_WALK_SKIN"
    g.put(node, "Subsurface Weight", 0.75)
    g.put(node, "Subsurface Radius", (1.0, 0.34, 0.18))
    g.put(node, "Subsurface Scale", spec["bleed_m"])
    return g.finish(node.outputs[0])


def make_nail(spec: Job, paint: Any, coat: Any) -> Any:
    """A nail: its painted colour under a clear coat; where nothing is below, light shines through.

    Args:
        paint, coat: images over (across, along): linear colour; gloss, metal and translucency.
    """
    g = Graph("nail")
    uv = g.add("ShaderNodeUVMap").outputs[0]
    colour = g.add("ShaderNodeTexImage", Vector=uv)
    colour.image, colour.interpolation, colour.extension = paint, "Cubic", "EXTEND"
    layers = g.add("ShaderNodeTexImage", Vector=uv)
    layers.image, layers.interpolation, layers.extension = coat, "Linear", "EXTEND"
    gloss, metal, clear = g.add("ShaderNodeSeparateColor", Color=layers.outputs[0]).outputs
    across, along, _ = g.add("ShaderNodeSeparateXYZ", Vector=uv).outputs
    place = g.add(
        "ShaderNodeCombineXYZ", X=g.math("MULTIPLY", across, 9.0), Y=along, Z=float(spec["seed"] % 50)
    )
    ridges = g.noise(place.outputs[0], 4.0, 1.0)
    uneven = g.noise(uv, 3.5, 1.0)
    height = g.math("ADD", g.math("MULTIPLY", ridges, spec["ridges"]), g.math("MULTIPLY", uneven, 1.4))
    normal = g.bump(height, 0.00008)
    node = g.add(
        "ShaderNodeBsdfPrincipled",
        Base_Color=colour.outputs[0],
        Metallic=metal,
        Roughness=g.math("SUBTRACT", 0.55, g.math("MULTIPLY", gloss, 0.2)),
        IOR=1.46,
        Normal=normal,
        Coat_Weight=gloss,
        Coat_Roughness=g.math("MAXIMUM", 0.03, g.math("SUBTRACT", 0.42, g.math("MULTIPLY", gloss, 0.45))),
        Coat_IOR=1.5,
        Coat_Normal=normal,
    )
    g.put(node, "Subsurface Weight", spec["bleed"])
    g.put(node, "Subsurface Radius", (1.0, 0.5, 0.4))
    g.put(node, "Subsurface Scale", 0.0008)
    through = g.add("ShaderNodeBsdfTranslucent", Color=colour.outputs[0])
    mixed = g.add("ShaderNodeMixShader", Fac=g.math("MULTIPLY", clear, 0.45))
    g.put(mixed, 1, node.outputs[0])
    g.put(mixed, 2, through.outputs[0])
    return g.finish(mixed.outputs[0])


def make_solid(spec: Job) -> Any:
    """Plastic, lacquer, paper, cloth or metal of one colour."""
    g = Graph(spec["kind"])
    where = g.add("ShaderNodeTexCoord").outputs["Object"]
    mottle = g.math("ADD", 0.93, g.math("MULTIPLY", g.noise(where, spec.get("grain", 40.0), 3.0), 0.14))
    colour = (*spec["colour"], 1.0)
    node = g.add("ShaderNodeBsdfPrincipled", Roughness=spec["roughness"], Metallic=float(spec["metal"]))
    g.put(node, "Base Color", g.tint(colour[:3], mottle))
    g.put(node, "Coat Weight", spec.get("coat", 0.0))
    if spec["kind"] == "cloth":
        g.put(node, "Sheen Weight", 0.35)
        threads = [
            g.add("ShaderNodeTexWave", Vector=where, Scale=s, Distortion=3.0, Detail=2.0) for s in (260, 310)
        ]
        threads[1].bands_direction = "Y"
        weave = g.math("MULTIPLY", threads[0].outputs[1], threads[1].outputs[1])
        weave = g.math("ADD", weave, g.noise(where, 700.0, 2.0))
        g.put(node, "Normal", g.bump(weave, 0.0005, 0.8))
        g.put(
            node,
            "Base Color",
            g.tint(g.tint(colour[:3], mottle), g.math("ADD", 0.75, g.math("MULTIPLY", weave, 0.3))),
        )
    return g.finish(node.outputs[0])


def make_surface(spec: Job, image: Any) -> Any:
    """A table, cloth or floor from a square picture, mirrored endlessly; dark parts lie lower."""
    g = Graph("surface")
    uv = g.add("ShaderNodeUVMap").outputs[0]
    picture = g.add("ShaderNodeTexImage", Vector=uv)
    picture.image, picture.extension, picture.interpolation = image, "MIRROR", "Cubic"
    grey = g.add("ShaderNodeRGBToBW", Color=picture.outputs[0]).outputs[0]
    smear = g.noise(uv, 3.0, 5.0)
    rough = g.math("ADD", spec["roughness"] - 0.06, g.math("MULTIPLY", smear, 0.12))
    node = g.add(
        "ShaderNodeBsdfPrincipled",
        Base_Color=picture.outputs[0],
        Roughness=rough,
        Normal=g.bump(grey, spec["relief_m"]),
        Coat_Weight=spec["coat"],
        Coat_Roughness=0.12,
    )
    g.put(node, "Sheen Weight", spec["sheen"])
    return g.finish(node.outputs[0])


def make_flat(colour: tuple[float, float, float]) -> Any:
    """Shines in one colour whatever the light: for pictures of labels."""
    g = Graph("flat")
    return g.finish(g.add("ShaderNodeEmission", Color=(*colour, 1.0)).outputs[0])
