"""3-D boxes and pinhole cameras as NumPy arrays. Needs no torch.

A box is (x, y, z, w, l, h, yaw, vx, vy): its centre in metres, its size across, along and above its heading, its heading in radians
counterclockwise from the x axis, and its velocity in m/s, NaN where it is not known. x points forward from the vehicle, y left, z up.
A camera is a 4 x 4 matrix that maps homogeneous points to (u * depth, v * depth, depth, 1), in pixels: the centre of the first is (.5, .5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BOX = ("x", "y", "z", "w", "l", "h", "yaw", "vx", "vy")
"""The columns of a box."""
NEAR = 0.1
"""Metres in front of a camera from which on a point is in the picture."""
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""Pairs of ``corners``; those of the first four are the lower face, and (0, 1), (4, 5), (0, 4), (1, 5) bound the front."""

_CORNERS = np.array([[x, y, z] for z in (-0.5, 0.5) for x, y in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5))])


def corners(boxes: np.ndarray) -> np.ndarray:
    """The corners [N, 8, 3] of boxes [N, 7 or more]: front left, front right, rear right, rear left, below and then above."""
    boxes = np.asarray(boxes, np.float64)
    points = _CORNERS * boxes[:, None, [4, 3, 5]]
    cosine, sine = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y = cosine * points[..., 0] - sine * points[..., 1], sine * points[..., 0] + cosine * points[..., 1]
    return np.stack((x, y, points[..., 2]), -1) + boxes[:, None, :3]


def project(points: np.ndarray, lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [..., 3] in cameras [V, 4, 4]: pixels [V, ..., 2] and depths [V, ...].

    Pixels mean something only where the depth is positive; below ``NEAR`` it is ``NEAR`` that they are divided by.
    """
    flat = np.concatenate((points.reshape(-1, 3), np.ones((points.size // 3, 1))), 1)
    seen = flat @ np.swapaxes(lidar2img, 1, 2)
    depth = seen[..., 2]
    pixels = seen[..., :2] / np.maximum(depth, NEAR)[..., None]
    return pixels.reshape(len(lidar2img), *points.shape[:-1], 2), depth.reshape(len(lidar2img), *points.shape[:-1])


def transform(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes [N, 9] in the frame that a rotation around z, a mirroring of y and a translation, [4, 4], lead to."""
    boxes = np.array(boxes, np.float64)
    heading = np.stack((np.cos(boxes[:, 6]), np.sin(boxes[:, 6])), 1) @ matrix[:2, :2].T
    boxes[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    boxes[:, 7:9] = boxes[:, 7:9] @ matrix[:2, :2].T
    return boxes


def contains(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points [K, 3] are in which boxes [N, 7 or more], on their surface included: bool [K, N]."""
    offset = points[:, None] - boxes[None, :, :3]
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along, across = cosine * offset[..., 0] + sine * offset[..., 1], cosine * offset[..., 1] - sine * offset[..., 0]
    local = np.stack((across, along, offset[..., 2]), -1)
    return np.all(np.abs(local) <= boxes[:, 3:6] / 2, axis=-1)


def rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] followed by a translation [3], as a matrix [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def inverse_rigid(matrix: np.ndarray) -> np.ndarray:
    """The inverse of what ``rigid`` makes."""
    return rigid(matrix[:3, :3].T, -matrix[:3, :3].T @ matrix[:3, 3])


def yaw_matrix(yaw: float) -> np.ndarray:
    """The rotation [3, 3] by ``yaw`` around z."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """The rotations [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length but 0."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_yaw(rotation: np.ndarray) -> np.ndarray:
    """The heading of rotations [..., 3, 3] around z: that of the turned x axis in the plane."""
    return np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def yaw_quaternion(yaw: np.ndarray) -> np.ndarray:
    """The quaternions [..., 4] (w, x, y, z) of headings."""
    zero = np.zeros_like(yaw)
    return np.stack((np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)), -1)


def matrix_quaternion(rotation: np.ndarray) -> np.ndarray:
    """The quaternion [4] (w, x, y, z), w >= 0, of a rotation [3, 3]."""
    m = rotation
    products = np.array(
        [
            [1 + m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2]],
        ]
    )  # 4 q q^T, whose row with the largest diagonal is the best conditioned multiple of q
    row = products[products.diagonal().argmax()]
    quaternion = row / np.linalg.norm(row)
    return quaternion if quaternion[0] >= 0 else -quaternion


def widened(area: Sequence[float]) -> tuple[float, ...]:
    """The space around an area of which rays are described and detections kept: 10 m further to each side, 5 below and 7 above."""
    return tuple(edge + margin for edge, margin in zip(area, (-10, -10, -5, 10, 10, 7), strict=True))
