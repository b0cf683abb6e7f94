"""The pixels of the built-in scenes: the plane, the sky, and every object as a camera sees it, by rays through the pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from boxquery.boxes3d import EDGES, NEAR, corners, project
from boxquery.data.surround.looks import ABOVE, FRONT, LEFT, REAR, RIGHT, TEXELS, Part, palette, parts

_FINE = 2  # objects are drawn with so many by so many rays per pixel, which are averaged
_TILE = 256  # texels of the noise that everything is textured with
_FINEST = 0.2  # metres per texel of the plane
_FAR = np.float32(1e9)
_AXIS_FACES = np.array(
    ((REAR, FRONT), (RIGHT, LEFT), (ABOVE, ABOVE))
)  # of the faces met by a ray along +axis and along -axis; none is seen from below
_HAZE = 90.0  # metres at which the colours of the plane are mostly those of the horizon


def paint(rng: np.random.Generator, lidar2img: np.ndarray, size: tuple[int, int], boxes: np.ndarray, labels: np.ndarray):
    """Render a scene.

    Args:
        lidar2img: float64 [V, 4, 4], all cameras above the plane z = 0.
        size: width and height of every image in pixels.
        boxes: [N, 9], standing on the plane.
        labels: int [N].

    Returns:
        V images, and int [V, N]: how many rays of each image (four per pixel) meet each object first.
    """
    width, height = size
    inverse = np.linalg.inv(lidar2img[:, :3, :3])
    origins = -np.einsum("vij,vj->vi", inverse, lidar2img[:, :3, 3])
    images = _ground(rng, inverse, origins, width, height)
    sun = rng.uniform(0, 2 * np.pi)
    looks = [(palette(rng, int(label)), rng.integers(0, _TILE, 2), _shades(box[6], sun)) for box, label in zip(boxes, labels, strict=True)]
    met = np.zeros((len(lidar2img), len(boxes)), np.int64)
    pixels, distance = project(corners(boxes), lidar2img)
    for v in range(len(lidar2img)):
        areas = {n: area for n in range(len(boxes)) if (area := _area(pixels[v, n], distance[v, n], width, height)) is not None}
        if not areas:
            continue
        left, top, right, bottom = np.array(list(areas.values())).T
        window = _Window(images[v], left.min(), top.min(), right.max(), bottom.max())
        for n, area in areas.items():
            rays = _Rays(inverse[v], origins[v], boxes[n], area)
            for part in parts()[labels[n]]:
                rays.draw(part, n, looks[n], window)
        images[v, window.rows, window.columns] = window.averaged()
        met[v] = np.bincount(window.owners.ravel() + 1, minlength=len(boxes) + 1)[1:]
    images = np.clip(images.astype(np.int16) + rng.integers(-5, 6, (*images.shape[:3], 1), dtype=np.int16), 0, 255).astype(np.uint8)
    return [Image.fromarray(image) for image in images], met


def _area(pixels: np.ndarray, depth: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The pixels (left, top, right, bottom) that may show a box whose corners are these, or None."""
    ahead = depth >= NEAR
    if not ahead.any():
        return None
    shown = pixels[ahead]
    if not ahead.all():  # where its edges pass ``NEAR``; pixels are divided by no less than that
        flat = pixels * np.maximum(depth, NEAR)[:, None]
        i, j = np.array([(i, j) for i, j in EDGES if ahead[i] != ahead[j]]).T
        share = ((NEAR - depth[i]) / (depth[j] - depth[i]))[:, None]
        shown = np.concatenate((shown, (flat[i] + share * (flat[j] - flat[i])) / NEAR))
    low, high = np.floor(shown.min(0)), np.ceil(shown.max(0))
    left, top, right, bottom = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
    return (int(left), int(top), int(right), int(bottom)) if left < right and top < bottom else None


class _Window:
    """The part of an image that objects are drawn on, finer than the image: colours, depths, and which object is seen (-1: none)."""

    def __init__(self, image: np.ndarray, left: int, top: int, right: int, bottom: int):
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self.colours = image[self.rows, self.columns].repeat(_FINE, 0).repeat(_FINE, 1)
        self.depths = np.full(self.colours.shape[:2], _FAR)
        self.owners = np.full(self.colours.shape[:2], -1, np.int16)

    def averaged(self) -> np.ndarray:
        """The colours, as coarse as the image."""
        high, wide = self.colours.shape[:2]
        return self.colours.reshape(high // _FINE, _FINE, wide // _FINE, _FINE, 3).sum((1, 3), dtype=np.uint16) // _FINE**2


class _Rays:
    """The rays of an area of a camera's image in the frame of a box: it is upright there, around the origin, and 1 long in every direction.

    A point of a ray is ``origin + depth * direction``, with the depth that the camera's matrix gives.
    """

    def __init__(self, inverse: np.ndarray, origin: np.ndarray, box: np.ndarray, area: tuple[int, int, int, int]):
        cosine, sine = np.cos(box[6]), np.sin(box[6])
        self.scale = box[[4, 3, 5]].astype(np.float32)
        local = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) / box[[4, 3, 5], None]
        self.origin = (local @ (origin - box[:3])).astype(np.float32)
        matrix = (local @ inverse).astype(np.float32)
        self.left, self.top, right, bottom = (_FINE * side for side in area)
        u = (np.arange(self.left, right, dtype=np.float32) + np.float32(0.5)) / _FINE
        v = (np.arange(self.top, bottom, dtype=np.float32) + np.float32(0.5)) / _FINE
        directions = (matrix[:, 1, None] * v + matrix[:, 2, None])[:, :, None] + (matrix[:, 0, None] * u)[:, None]
        self.inverse = 1 / np.where(directions == 0, np.float32(1e-9), directions)

    def draw(self, part: Part, owner: int, look: tuple[np.ndarray, np.ndarray, np.ndarray], window: _Window) -> None:
        """One box of an object, where nothing nearer is in the window."""
        low, high = (part.low - self.origin)[:, None, None] * self.inverse, (part.high - self.origin)[:, None, None] * self.inverse
        enter, leave = np.minimum(low, high), np.maximum(low, high)
        depth = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
        top, left = self.top - _FINE * window.rows.start, self.left - _FINE * window.columns.start
        before = window.depths[top : top + depth.shape[0], left : left + depth.shape[1]]
        rows, columns = np.nonzero(
            (depth < np.minimum(np.minimum(leave[0], leave[1]), leave[2])) & (depth > np.float32(NEAR)) & (depth < before)
        )
        if not len(rows):
            return
        axis = enter[:, rows, columns].argmax(0)
        depth = depth[rows, columns]
        direction = 1 / self.inverse[:, rows, columns]
        point = self.origin[:, None] + depth * direction
        backwards = direction[axis, np.arange(len(axis))] < 0
        face = _AXIS_FACES[axis, backwards.astype(np.int8)]
        along, across, up = np.clip((point - part.low[:, None]) * (TEXELS / (part.high - part.low))[:, None], 0, TEXELS - 1).astype(np.intp)
        texel = part.faces[face, np.where(axis == 2, across, up), np.where(axis == 0, across, along)]
        colours, offset, shades = look
        along, across, up = ((point * self.scale[:, None] + 20) * np.float32(12)).astype(np.intp)
        grain = _noise()[(np.where(axis == 2, across, up) + offset[0]) % _TILE, (np.where(axis == 0, across, along) + offset[1]) % _TILE]
        rows, columns = rows + top, columns + left
        window.colours[rows, columns] = np.clip((colours[texel] + np.float32(26) * grain[:, None]) * shades[face][:, None], 0, 255)
        window.depths[rows, columns], window.owners[rows, columns] = depth, owner


def _shades(yaw: float, sun: float) -> np.ndarray:
    """How bright each face is, float32 [5]."""
    headings = yaw + np.array([0, np.pi, np.pi / 2, -np.pi / 2])
    return np.append(0.74 + 0.24 * np.cos(headings - sun), 1.05).astype(np.float32)


def _ground(rng: np.random.Generator, inverse: np.ndarray, origins: np.ndarray, width: int, height: int) -> np.ndarray:
    """The plane below the horizon and the sky above it, uint8 [V, height, width, 3]."""
    u, v = np.arange(width, dtype=np.float32) + np.float32(0.5), np.arange(height, dtype=np.float32) + np.float32(0.5)
    matrix = inverse.astype(np.float32)[..., None, None]
    x, y, z = (matrix[:, k, 0] * u + matrix[:, k, 1] * v[:, None] + matrix[:, k, 2] for k in range(3))
    base, other = _grounds()[rng.integers(len(_grounds()))]
    base, other = base + rng.uniform(-15, 15, 3).astype(np.float32), other + rng.uniform(-15, 15, 3).astype(np.float32)
    zenith = np.array([70, 120, 190], np.float32) + rng.uniform(-40, 40, 3).astype(np.float32)
    horizon = np.array([205, 210, 215], np.float32) + rng.uniform(-30, 30, 3).astype(np.float32)
    move = rng.uniform(0, 1000, 4).astype(np.float32)
    noise = _noise()

    below = z < -1e-3
    views, rows, columns = np.nonzero(below)
    x_below, y_below = x[views, rows, columns], y[views, rows, columns]
    start = origins.astype(np.float32)
    depth = -start[views, 2] / z[views, rows, columns]
    here_x, here_y = start[views, 0] + depth * x_below, start[views, 1] + depth * y_below
    fine = _sample(noise, (here_x + move[0]) / np.float32(_FINEST), (here_y + move[1]) / np.float32(_FINEST))
    coarse = _sample(noise, (here_x + move[2]) / np.float32(20 * _FINEST), (here_y + move[3]) / np.float32(20 * _FINEST))
    haze = np.float32(0.7) * np.minimum(depth / np.float32(_HAZE), 1) ** 2
    fine = np.float32(34) * fine / (1 + depth / 12)
    mixed = np.clip(0.5 + coarse, 0, 1)
    images = np.empty((*below.shape, 3), np.uint8)
    plane = np.empty((len(depth), 3), np.uint8)
    for k in range(3):
        colour = base[k] + mixed * (other[k] - base[k]) + fine
        plane[:, k] = np.clip(colour + haze * (horizon[k] - colour), 0, 255)
    images[below] = plane

    above = ~below
    x, y, z = x[above], y[above], np.maximum(z[above], 0)
    slope = z / np.sqrt(x * x + y * y)
    reach = np.float32(60) / (z + np.float32(0.12))
    cloud = np.float32(30) * _sample(noise, x * reach + move[0], y * reach + move[1]) * np.minimum(8 * slope, 1)
    rise = np.sqrt(np.minimum(slope, 1))
    sky = np.empty((len(z), 3), np.uint8)
    for k in range(3):
        sky[:, k] = np.clip(horizon[k] + rise * (zenith[k] - horizon[k]) + cloud, 0, 255)
    images[above] = sky
    return images


def _sample(noise: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return noise[y.astype(np.int32) & (_TILE - 1), x.astype(np.int32) & (_TILE - 1)]


@lru_cache(maxsize=1)
def _grounds() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Pairs of colours that a plane is made of."""
    pairs = (
        ((92, 92, 96), (122, 120, 118)),
        ((84, 104, 62), (128, 122, 82)),
        ((150, 134, 108), (118, 104, 86)),
        ((178, 180, 186), (140, 146, 156)),
    )
    return tuple((np.array(a, np.float32), np.array(b, np.float32)) for a, b in pairs)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Smooth noise that repeats, float32 [_TILE, _TILE] around -1..1."""
    rng, total = np.random.default_rng(2026), np.zeros((_TILE, _TILE), np.float32)
    for octave, weight in ((16, 0.5), (64, 0.5), (256, 0.6)):
        cells = Image.fromarray(np.tile(rng.standard_normal((octave, octave)).astype(np.float32), (3, 3)))
        total += weight * np.asarray(cells.resize((3 * _TILE, 3 * _TILE), Image.Resampling.BICUBIC))[_TILE : 2 * _TILE, _TILE : 2 * _TILE]
    return np.clip(total, -2, 2) / 1.5
