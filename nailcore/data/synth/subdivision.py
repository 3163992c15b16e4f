"""Catmull-Clark subdivision of a quad mesh as a sparse matrix, computed once per topology."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


def subdivide(quads: I32, vertex_count: int) -> tuple[sp.csr_matrix, I32]:
    """One Catmull-Clark step.

    Returns:
        A (V', V) float32 matrix that maps vertices to the finer mesh, and its (4 F, 4) quads;
        the children of quad q are rows 4 q .. 4 q + 3, first the one at its first corner.
    """
    faces, edges = len(quads), np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1).reshape(-1, 2)
    unique, edge_of, uses = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True, return_counts=True)
    edge_of = edge_of.reshape(faces, 4)  # edge i runs from corner i to corner i + 1
    face_points = _average(quads, vertex_count)
    edge_faces = sp.csr_matrix(
        (np.ones(faces * 4), (edge_of.ravel(), np.repeat(np.arange(faces), 4))), (len(unique), faces)
    )
    edge_ends = sp.csr_matrix(
        (np.ones(len(unique) * 2), (np.repeat(np.arange(len(unique)), 2), unique.ravel())),
        (len(unique), vertex_count),
    )
    inner = (uses == 2).astype(float)
    edge_points = sp.diags(0.5 - 0.25 * inner) @ edge_ends + sp.diags(0.25 * inner) @ edge_faces @ face_points
    vertex_points = _move_vertices(quads, uses == 1, face_points, edge_ends)
    matrix = sp.vstack([vertex_points, edge_points, face_points]).tocsr().astype(np.float32)
    corner, edge = quads, vertex_count + edge_of
    centre = np.broadcast_to((vertex_count + len(unique) + np.arange(faces))[:, None], quads.shape)
    children = np.stack([corner, edge, centre, np.roll(edge, 1, axis=1)], axis=-1)
    return matrix, children.reshape(-1, 4).astype(np.int32)


def _average(quads: I32, vertex_count: int) -> sp.csr_matrix:
    rows = np.repeat(np.arange(len(quads)), 4)
    return sp.csr_matrix((np.full(len(rows), 0.25), (rows, quads.ravel())), (len(quads), vertex_count))


def _move_vertices(
    quads: I32,
    is_border: npt.NDArray[np.bool_],
    face_points: sp.csr_matrix,
    edge_ends: sp.csr_matrix,
) -> sp.csr_matrix:
    """Old vertices: (Q + 2 R + (n - 3) S) / n inside, the cubic B-spline rule along a border."""
    vertex_count = face_points.shape[1]
    valence = np.maximum(np.asarray(edge_ends.sum(axis=0)).ravel(), 1.0)
    touching = sp.csr_matrix(
        (np.ones(quads.size), (quads.ravel(), np.repeat(np.arange(len(quads)), 4))),
        (vertex_count, len(quads)),
    )
    face_mean = sp.diags(1 / np.maximum(np.bincount(quads.ravel(), minlength=vertex_count), 1)) @ touching
    edge_mean = sp.diags(1 / valence) @ edge_ends.T @ (0.5 * edge_ends)
    inside = sp.diags(1 / valence) @ (face_mean @ face_points + 2 * edge_mean) + sp.diags(1 - 3 / valence)
    border_edges = edge_ends[is_border]
    border = np.asarray(border_edges.sum(axis=0)).ravel() > 0
    along = 0.125 * (border_edges.T @ border_edges) + 0.5 * sp.identity(vertex_count)  # 1/8, 3/4, 1/8
    return sp.diags(1.0 - border) @ inside + sp.diags(border.astype(float)) @ along


def smooth_normals(vertices: F32, quads: I32) -> F32:
    """(V, 3) unit vertex normals, the area-weighted mean of the faces around each vertex."""
    p = vertices[quads]  # (F, 4, 3)
    face = np.cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])
    total = np.stack(
        [np.bincount(quads.ravel(), np.repeat(face[:, i], 4), len(vertices)) for i in range(3)], axis=-1
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.maximum(length, 1e-12), dtype=np.float32)
