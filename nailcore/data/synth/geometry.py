"""A scene's hands as triangles in camera space: posed skin, nail plates, and what shading needs of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nailcore.data.synth.mesh import FINGER_BONES, RestHand, load_hand, pose_hand, rotate_about, shape_hand
from nailcore.data.synth.nail_plate import COLUMNS, ROWS, NailPlate, fit_plates, plate_quads
from nailcore.data.synth.scene import Hand, Pose
from nailcore.data.synth.subdivision import F32, I32, smooth_normals
from nailcore.data.synth.worn import WornGeometry, build_worn
from nailcore.variant import FINGERS

SINK_MM = 0.5  # skin under a plate gives way, so that it never pokes through
FOLD_MM = 0.35  # skin beside a plate swells


@dataclass(frozen=True)
class PlateGeometry:
    """One nail in camera space."""

    plate: NailPlate
    label: str  # one of nailcore.variant.FINGER_CLASSES
    vertices: F32  # (ROWS * COLUMNS, 3) mm
    normals: F32
    quads: I32
    base: F32  # (3,) mm
    tip: F32


@dataclass(frozen=True)
class SkinMarks:
    """Per-vertex facts of a subject's skin at rest; all (V2,) but ``position``."""

    position: F32  # (V2, 3) mm at rest: where procedural texture is anchored
    palm: F32  # 0 back of the hand .. 1 palm side
    joint: F32  # 0 .. 1 near a finger joint
    line: F32  # the same, less where bending stretches the skin over the joint
    joint_mm: F32  # signed distance from that joint along the finger
    tip: F32  # 0 .. 1 towards a fingertip
    fold: F32  # 0 .. 1 close beside a nail


@dataclass(frozen=True)
class HandGeometry:
    """One hand in camera space (x right, y down, z away), millimetres."""

    hand: Hand
    vertices: F32  # (V2, 3)
    normals: F32
    quads: I32
    coarse_vertices: F32  # (V1, 3), for shadows
    coarse_quads: I32
    marks: SkinMarks
    plates: tuple[PlateGeometry, ...]
    worn: tuple[WornGeometry, ...]
    dorsal: F32  # (3,) unit, out of the back of the hand

    @property
    def sheets(self) -> tuple[PlateGeometry | WornGeometry, ...]:
        """Everything but the skin: nails, then what is worn."""
        return (*self.plates, *self.worn)


def build_hand(hand: Hand) -> HandGeometry:
    """Shape, pose and place one hand."""
    asset, rest = load_hand(), shape_hand(hand.shape)
    plates = fit_plates(rest, hand.nails.shape, hand.nails.free_edge_mm)
    marks, push_mm = _mark_skin(rest, plates, hand.pose)
    cage, bones = pose_hand(rest, hand.pose)
    rotation, shift = _place(hand, rest, plates, bones)
    fine_quads, coarse_quads, sheet = asset.fine_quads, asset.coarse_quads, plate_quads()
    if hand.side == "left":  # mirroring turns every face over
        fine_quads, coarse_quads, sheet = (q[:, ::-1] for q in (fine_quads, coarse_quads, sheet))
    cage = (cage @ rotation.T + shift).astype(np.float32)
    vertices = asset.to_fine @ cage
    vertices = vertices + smooth_normals(vertices, fine_quads) * push_mm[:, None]
    placed = []
    for plate in plates:
        bone = bones[plate.bone]
        points = (plate.vertices @ bone[:3, :3].T + bone[:3, 3]) @ rotation.T + shift
        points = points.astype(np.float32)
        ends = np.stack([plate.base, plate.tip]) @ bone[:3, :3].T + bone[:3, 3]
        base, tip = (ends @ rotation.T + shift).astype(np.float32)
        label = f"{hand.side} {FINGERS[plate.finger]}"
        placed.append(PlateGeometry(plate, label, points, smooth_normals(points, sheet), sheet, base, tip))
    worn = []
    for item in hand.worn:
        points, quads, bone_number = build_worn(rest, item)
        bone = bones[bone_number]
        points = (points @ bone[:3, :3].T + bone[:3, 3]) @ rotation.T + shift
        points = points.astype(np.float32)
        quads = quads[:, ::-1] if hand.side == "left" else quads
        worn.append(WornGeometry(item, points, smooth_normals(points, quads), quads))
    return HandGeometry(
        hand=hand,
        vertices=vertices.astype(np.float32),
        normals=smooth_normals(vertices, fine_quads),
        quads=fine_quads,
        coarse_vertices=asset.to_coarse @ cage,
        coarse_quads=coarse_quads,
        marks=marks,
        plates=tuple(placed),
        worn=tuple(worn),
        dorsal=(rotation @ [0.0, 0.0, 1.0]).astype(np.float32),
    )


def _place(
    hand: Hand, rest: RestHand, plates: tuple[NailPlate, ...], bones: F32
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Matrix and shift from the right hand's frame to the camera; a left hand's matrix mirrors x first."""
    x, y, z = np.eye(3)
    yaw_deg = hand.yaw_deg if hand.side == "right" else -hand.yaw_deg
    turn = (
        rotate_about(z, hand.roll_deg)
        @ rotate_about(x, hand.pitch_deg)
        @ rotate_about(y, yaw_deg)
        @ np.diag([1.0, -1.0, -1.0])  # hand axes (ulnar, distal, dorsal) to camera axes, det +1
    )
    if hand.side == "left":
        turn = turn @ np.diag([-1.0, 1.0, 1.0])
    tips = [bones[p.bone][:3, :3] @ p.origin + bones[p.bone][:3, 3] for p in plates]
    knuckles = [rest.joints[chain[0], 0] for chain in FINGER_BONES[1:]]
    share = hand.tips_share
    middle = share * np.mean(tips, axis=0) + (1 - share) * np.mean(knuckles, axis=0)
    return turn, np.asarray(hand.centre_mm) - turn @ middle


def _mark_skin(rest: RestHand, plates: tuple[NailPlate, ...], pose: Pose) -> tuple[SkinMarks, F32]:
    """Skin marks, and how far each vertex moves along its normal to bed the nails, in mm."""
    asset = load_hand()
    weights = asset.to_fine @ asset.weights  # (V2, 22)
    count = len(rest.fine)
    up = np.tile([0.0, 0.0, 0.7], (count, 1))
    joint, line, tip = np.zeros(count), np.zeros(count), np.zeros(count)
    joint_mm = np.full(count, 99.0)
    fold, push = np.zeros(count), np.zeros(count)
    for plate, chain in zip(plates, FINGER_BONES, strict=True):
        member = weights[:, chain].sum(axis=1)
        up += member[:, None] * (plate.frame[2] - [0, 0, 0.7])
        for k, bone in enumerate(chain):
            head, tail = rest.joints[bone]
            axis = (tail - head) / np.linalg.norm(tail - head)
            s = (rest.fine - head) @ axis
            near = np.exp(-((s / (8.0 if k == 0 else 5.0)) ** 2)) * np.clip(
                member + (0.6 * weights[:, asset.parents[bone]] if k == 0 else 0), 0, 1
            )
            near *= 0.5 if k == 0 else 1.0
            slack = np.clip(1 - pose.fingers[plate.finger].bends_deg[k] / 55, 0.1, 1.2)
            joint_mm = np.where(near > joint, s, joint_mm)
            line = np.where(near > joint, near * slack, line)
            joint = np.maximum(joint, near)
        last = rest.joints[chain[2]]
        reach = (rest.fine - last[0]) @ (last[1] - last[0]) / np.sum((last[1] - last[0]) ** 2)
        tip = np.maximum(tip, np.clip((reach - 0.2) / 0.8, 0, 1) * weights[:, chain[2]])
        beside, inside = _measure_fold(rest, plate, weights[:, chain[2]])
        fold = np.maximum(fold, beside)
        push += FOLD_MM * beside - SINK_MM * inside
    facing = np.einsum("vi,vi->v", rest.fine_normals, up / np.linalg.norm(up, axis=1, keepdims=True))
    palm = np.clip((0.25 - facing) / 0.7, 0, 1)
    columns = [np.asarray(c, dtype=np.float32) for c in (palm, joint, line, joint_mm, tip, fold)]
    return SkinMarks(rest.fine, *columns), push.astype(np.float32)


def _measure_fold(rest: RestHand, plate: NailPlate, weight: F32) -> tuple[F32, F32]:
    """How close (V2,) each vertex lies beside a plate, and how far inside its outline, both 0 .. 1."""
    local = (rest.fine - plate.origin) @ plate.frame.T
    rows = plate.along_mm[::COLUMNS]
    sheet = (plate.vertices - plate.origin) @ plate.frame.T
    half = np.abs(sheet[:, 0]).reshape(ROWS, COLUMNS).max(axis=1)
    width = np.interp(local[:, 1], rows, half, left=0.0, right=half[-1])
    y = np.clip(-local[:, 1], 0, None)
    gap = np.hypot(np.clip(np.abs(local[:, 0]) - width, 0, None), y)
    gap = np.where(y > 0, np.hypot(np.clip(np.abs(local[:, 0]) - 0.6 * plate.half_width_mm, 0, None), y), gap)
    above = (rest.fine_normals @ plate.frame[2] > 0.1) & (weight > 0.5) & (local[:, 1] < plate.bed_mm * 1.05)
    above &= local[:, 2] > -4
    inside = np.clip((width - np.abs(local[:, 0])) / 1.2, 0, 1) * (y == 0)
    fade = np.clip((plate.bed_mm * 0.95 - local[:, 1]) / 2, 0, 1)
    beside = np.exp(-((gap / 1.3) ** 2)) * (1 - inside) * fade * above
    return beside.astype(np.float32), (inside * above).astype(np.float32)
