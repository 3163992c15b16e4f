"""The CC0 hand mesh: shaped for a subject, put into a hand frame, posed by linear blend skinning."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from nailcore.data.synth.scene import FingerPose, HandShape, Pose
from nailcore.data.synth.subdivision import F32, I32, smooth_normals, subdivide
from nailcore.errors import DataError

HAND_FILE = Path(__file__).with_name("hand.npz")
MM_PER_UNIT = 100.0
FOREARM_EXTENSION_MM = 260.0  # the mesh ends at the elbow; an image must never show that cut
FINGER_BONES = ((7, 8, 9), (10, 11, 12), (13, 14, 15), (16, 17, 18), (19, 20, 21))  # thumb .. pinky


@dataclass(frozen=True)
class HandAsset:
    """The file's content with the forearm lengthened, and the topology of two subdivision steps."""

    vertices: F32  # (V, 3) file units
    weights: F32  # (V, 22)
    joints: F32  # (22, 2, 3)
    parents: npt.NDArray[np.int64]
    targets: dict[str, tuple[F32, F32]]  # offsets of vertices and joints
    to_coarse: sp.csr_matrix  # (V1, V), one step: for shadows
    to_fine: sp.csr_matrix  # (V2, V), two steps: for pictures
    coarse_quads: I32
    fine_quads: I32
    nail_quads: tuple[I32, ...]  # per finger, rows of ``fine_quads``
    diffusion: sp.csr_matrix  # (V2, V2) mean over neighbours


@dataclass(frozen=True)
class RestHand:
    """A subject's right hand at rest in millimetres; x ulnar, y distal, z dorsal, origin at the wrist."""

    vertices: F32  # (V, 3)
    joints: F32  # (22, 2, 3)
    fine: F32  # (V2, 3)
    fine_normals: F32


@functools.cache
def load_hand() -> HandAsset:
    """Read the mesh that ships with the package.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with np.load(HAND_FILE) as data:
            raw = {key: data[key] for key in ("v", "f", "w", "joints", "parents", "nail", "tn", "tv", "tj")}
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{HAND_FILE.name}: the hand mesh is missing or damaged: {error}",
            hint="It is part of the package: install nailtool again.",
        ) from error
    vertices, quads, weights, offsets = _lengthen_forearm(raw)
    first, coarse_quads = subdivide(quads, len(vertices))
    second, fine_quads = subdivide(coarse_quads, first.shape[0])
    return HandAsset(
        vertices=vertices,
        weights=weights,
        joints=raw["joints"],
        parents=raw["parents"],
        targets={str(n): (offsets[i], raw["tj"][i]) for i, n in enumerate(raw["tn"])},
        to_coarse=first,
        to_fine=(second @ first).tocsr(),
        coarse_quads=coarse_quads,
        fine_quads=fine_quads,
        nail_quads=_find_nail_quads(raw["f"], raw["w"], raw["nail"]),
        diffusion=_mean_over_neighbours(fine_quads, second.shape[0]),
    )


def _lengthen_forearm(raw: dict[str, npt.NDArray[np.float32]]) -> tuple[F32, I32, F32, F32]:
    """Extrude the open loop at the elbow, so that a close view never sees where the mesh ends."""
    vertices, quads, weights, offsets = raw["v"], raw["f"].astype(np.int32), raw["w"], raw["tv"]
    edges = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2)
    _, at, uses = np.unique(np.sort(edges, axis=1), axis=0, return_index=True, return_counts=True)
    loop = edges[at[uses == 1]]  # directed as in their one face
    ring = np.unique(loop)
    fresh = np.full(len(vertices), -1, dtype=np.int32)
    fresh[ring] = len(vertices) + np.arange(len(ring))
    axis = raw["joints"][0, 0] - raw["joints"][1, 1]
    step = axis / np.linalg.norm(axis) * (FOREARM_EXTENSION_MM / MM_PER_UNIT)
    wall = np.stack([loop[:, 1], loop[:, 0], fresh[loop[:, 0]], fresh[loop[:, 1]]], axis=-1)
    return (
        np.concatenate([vertices, vertices[ring] + step]).astype(np.float32),
        np.concatenate([quads, wall]).astype(np.int32),
        np.concatenate([weights, weights[ring]]),
        np.concatenate([offsets, offsets[:, ring]], axis=1).astype(np.float32),
    )


def _find_nail_quads(
    quads: npt.NDArray[np.float32], weights: F32, nail: npt.NDArray[np.float32]
) -> tuple[I32, ...]:
    rows = np.flatnonzero(nail)
    bone = weights[quads[rows]].mean(axis=1).argmax(axis=1)
    per_finger = [rows[bone == bones[2]] for bones in FINGER_BONES]
    return tuple((16 * r[:, None] + np.arange(16)).ravel().astype(np.int32) for r in per_finger)


def _mean_over_neighbours(quads: I32, vertex_count: int) -> sp.csr_matrix:
    ends = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2)
    links = sp.coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (vertex_count, vertex_count))
    links = (links + links.T + sp.identity(vertex_count)).tocsr()
    return (sp.diags(1 / np.asarray(links.sum(axis=1)).ravel()) @ links).tocsr().astype(np.float32)


def shape_hand(shape: HandShape) -> RestHand:
    """Apply a subject's shape targets and move the result into the hand frame."""
    asset = load_hand()
    vertices, joints = asset.vertices.astype(np.float64), asset.joints.astype(np.float64)
    for name, weight in shape.targets:
        moved, joint_moved = asset.targets[name]
        vertices, joints = vertices + weight * moved, joints + weight * joint_moved
    origin, frame = _find_hand_frame(joints)
    to_mm = MM_PER_UNIT * shape.scale
    rest = ((vertices - origin) @ frame.T * to_mm).astype(np.float32)
    fine = asset.to_fine @ rest
    normals = smooth_normals(fine, asset.fine_quads)
    nails = np.concatenate(asset.nail_quads[1:])
    if normals[asset.fine_quads[nails]].mean(axis=(0, 1))[2] <= 0:
        raise DataError("The hand mesh is inside out: its nails do not face the dorsal side.")
    return RestHand(rest, ((joints - origin) @ frame.T * to_mm).astype(np.float32), fine, normals)


def _find_hand_frame(joints: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Origin and rows x (ulnar), y (distal), z (dorsal); a proper rotation for a right hand."""
    origin = joints[2, 0]
    index, middle, pinky = joints[10, 0], joints[13, 0], joints[19, 0]
    y = middle - origin
    y /= np.linalg.norm(y)
    x = (pinky - index) - ((pinky - index) @ y) * y
    x /= np.linalg.norm(x)
    return origin, np.stack([x, y, np.cross(x, y)])


def pose_hand(rest: RestHand, pose: Pose) -> tuple[F32, F32]:
    """Skin the coarse cage of a right hand.

    Returns:
        (V, 3) posed cage vertices in mm, and (22, 4, 4) bone transforms of rest positions.
    """
    asset = load_hand()
    bones = pose_bones(rest, pose)
    blended = np.tensordot(asset.weights, bones.reshape(22, 16), axes=1).reshape(-1, 4, 4)
    posed = np.einsum("vij,vj->vi", blended[:, :3, :3], rest.vertices) + blended[:, :3, 3]
    return posed.astype(np.float32), bones


def pose_bones(rest: RestHand, pose: Pose) -> F32:
    """Forward kinematics: (22, 4, 4) transforms that act on rest positions, in mm; the palm stays put."""
    parents = load_hand().parents
    bones = np.tile(np.eye(4), (22, 1, 1))
    hinge = rotate_about(np.array([1.0, 0, 0]), pose.wrist_bend_deg)
    hinge = hinge @ rotate_about(np.array([0, 0, 1.0]), pose.wrist_side_deg)
    bones[:2] = _turn_at(hinge, rest.joints[2, 0])  # the forearm turns behind the hand
    for finger, chain in enumerate(FINGER_BONES):
        for bone, turn in zip(chain, _turn_joints(rest, finger, pose.fingers[finger]), strict=True):
            bones[bone] = bones[parents[bone]] @ _turn_at(turn, rest.joints[bone, 0])
    return bones.astype(np.float32)


def _turn_at(rotation: npt.NDArray[np.float64], point: F32) -> npt.NDArray[np.float64]:
    turn = np.eye(4)
    turn[:3, :3] = rotation
    turn[:3, 3] = point - rotation @ point
    return turn


def _turn_joints(rest: RestHand, finger: int, pose: FingerPose) -> list[npt.NDArray[np.float64]]:
    """Rotation of a finger's three bones, in rest axes; positive bends close the hand."""
    asset = load_hand()
    nail = asset.fine_quads[asset.nail_quads[finger]]
    dorsal = rest.fine_normals[nail].mean(axis=(0, 1)).astype(np.float64)
    axis = rest.joints[FINGER_BONES[finger][0]].astype(np.float64)
    twist = rotate_about((axis[1] - axis[0]) / np.linalg.norm(axis[1] - axis[0]), pose.twist_deg)
    turns = []
    for bone, bend_deg in zip(FINGER_BONES[finger], pose.bends_deg, strict=True):
        along = (rest.joints[bone, 1] - rest.joints[bone, 0]).astype(np.float64)
        along /= np.linalg.norm(along)
        side = np.cross(along, dorsal)
        side /= np.linalg.norm(side)
        turns.append(rotate_about(side, -bend_deg))
    spread = rotate_about(np.array([0, 0, 1.0]), -pose.spread_deg)  # positive: towards the little finger
    return [spread @ twist @ turns[0], *turns[1:]]


def rotate_about(axis: npt.NDArray[np.float64], degrees: float) -> npt.NDArray[np.float64]:
    """Rodrigues' rotation matrix, (3, 3)."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k))
