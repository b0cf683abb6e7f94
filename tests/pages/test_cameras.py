"""Scenes of several cameras as a picture: boxes are where they are projected to, and as they stand from above."""

import numpy as np
from PIL import Image

from boxquery.boxes3d import EDGES, NEAR, corners, project
from boxquery.data.surround import surround_data
from boxquery.pages.cameras import draw_camera, draw_from_above, draw_scene
from boxquery.pages.drawing import colour

NONE = np.zeros((0, 9)), np.zeros(0, int)


def marked(picture: Image.Image, ink) -> np.ndarray:
    """Pixels [K, 2] (x, y) of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == ink).all(2))
    return np.stack((columns, rows), 1)


def test_edges_end_in_the_projected_corners():
    record = surround_data(objects=3).splits["val"][1]
    pixels, depth = project(corners(record.boxes), record.lidar2img)
    v, n = next((v, n) for v, n in np.argwhere((depth > 1).all(2)) if (pixels[v, n] > 5).all() and (pixels[v, n] < (150, 90)).all())
    plain = Image.new("RGB", (160, 96), (1, 2, 3))
    for size, scale in (((160, 96), 1), ((480, 288), 3)):
        picture = draw_camera(plain, record.lidar2img[v], record.boxes[n : n + 1], record.labels[n : n + 1], size=size)
        ink = marked(picture, colour(record.labels[n]))
        assert abs(ink.min(0) - scale * pixels[v, n].min(0)).max() < 2.5
        assert abs(ink.max(0) - scale * pixels[v, n].max(0)).max() < 2.5
    truth = draw_camera(plain, record.lidar2img[v], *NONE, truth=(record.boxes[n : n + 1], record.labels[n : n + 1]), size=size)
    assert 0 < len(marked(truth, colour(record.labels[n]))) < 0.8 * len(ink)  # dashed


def test_from_above_forward_is_up_and_left_is_left():
    box = np.array([[30.0, 20, 1, 2, 6, 2, 0, 0, 0]])
    picture = draw_from_above(box, np.array([0]), radius=50, side=400)
    middle = marked(picture, colour(0)).mean(0)
    assert abs(middle - (200 - 20 * 4, 200 - 30 * 4)).max() < 4
    tall, wide = np.ptp(marked(picture, colour(0)), axis=0)[::-1]
    assert tall > 2 * wide


def test_edges_that_leave_the_image_keep_their_direction():
    """Beside a camera they end tens of thousands of pixels away."""
    camera, size = np.array([[80.0, -400, 0, 0], [48, 0, -400, 0], [1, 0, 0, 0], [0, 0, 0, 1]]), (160, 96)
    rng, drawn = np.random.default_rng(0), 0
    for box in rng.uniform((-1, -9, -1, 1, 4, 1, -3), (6, 9, 1, 8, 30, 4, 3), (12, 7)):
        ends = corners(box[None])[0][np.array(EDGES)]
        places = np.linspace(0, 1, 5_000)[:, None, None]
        points = (ends[:, 0] * (1 - places) + ends[:, 1] * places).reshape(-1, 3)
        pixels, depth = project(points, camera[None])
        seen = pixels[0][(depth[0] > NEAR) & (pixels[0] > 1).all(1) & (pixels[0] < np.array(size) - 1).all(1)]
        picture = draw_camera(Image.new("RGB", size), camera, box[None], np.array([0]))
        ink = marked(picture, colour(0))
        if len(seen):
            drawn += 1
            assert np.abs(seen[:: len(seen) // 100 + 1, None] - ink).max(2).min(1).max() < 2.5, "every edge is drawn where it is"
    assert drawn > 4


def test_rings_say_their_metres():
    for side, radius, rings in ((400, 50, (10, 20, 30, 40)), (200, 60, (20, 40))):
        picture = draw_from_above(*NONE, radius=radius, side=side)
        plain = np.abs(marked(picture, (205, 205, 205)) - side / 2)
        for ring in range(10, radius, 10):
            line = side / 2 / radius * ring
            crossed = (plain[:, 1] < 1) & (abs(plain[:, 0] - line) < 2) & (marked(picture, (205, 205, 205))[:, 0] > side / 2)
            assert crossed.any() == (ring not in rings), f"a number stands on the ring of {ring} m, or the line goes on"


def test_the_legend_is_where_no_box_is_or_can_be_read_over_them():
    def legend(*corners: tuple[int, int]) -> np.ndarray:
        boxes = np.array([[44.0 * x, 44 * y, 1, 6, 12, 2, 0.3, 0, 0] for x, y in corners]).reshape(-1, 9)
        found = marked(draw_from_above(boxes, np.zeros(len(boxes), int), names=["car", "container"], side=400), colour(1))
        return np.array([*found.min(0), len(found)])

    alone = legend()
    assert alone[:2].max() < 40, "in the first corner"
    assert legend((1, 1))[0] > 300, "in the next, as a box is there"
    assert legend((1, 1), (1, -1))[1] > 300
    everywhere = legend((1, 1), (1, -1), (-1, 1), (-1, -1))
    assert everywhere.tolist() == alone.tolist()


def test_a_scene_has_all_cameras_and_the_view_from_above():
    split = surround_data().splits["val"]
    record, images = split[0], split.read(0)
    picture = draw_scene(
        images, record.lidar2img, record.boxes, record.labels, names=("car",), truth=(record.boxes, record.labels), width=900
    )
    assert abs(picture.width - 900) < 20
    bare = draw_scene(images, record.lidar2img, *NONE, cameras=record.cameras, width=900)
    assert bare.size == picture.size
    assert draw_scene(images[:1], record.lidar2img[:1], *NONE, width=300).width < 320
    behind = np.array([[0.0, 0, 1, 2, 40, 2, 0, 0, 0]])  # reaches before and behind every camera
    assert draw_scene(images, record.lidar2img, behind, np.array([0])).size == draw_scene(images, record.lidar2img, *NONE).size
