"""A drawn data set: eight kinds of objects in noisy, cluttered pictures, with boxes that are exact by construction.

For demos and tests without downloads. Everything is computed with NumPy and OpenCV from the seed; picture number i of
a split is the same however many are drawn. What the labels mean:

- a box holds all of the object that lies inside the picture, also the part that something in front of it hides;
- an object that shows less than 30 % of its pixels (hidden or outside the picture) carries no label;
- plain lines, rectangles and ellipses in the background are clutter and belong to no class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import write_bytes, write_json
from hawkeye.errors import ConfigError, DataError, RunDirError
from hawkeye.progress import progress

Array = NDArray[np.float32]

MIN_OBJECT_PX = 8.0  # longest side of the smallest object, before turning
MAX_OBJECT = 0.625  # of the picture's side: 200 px at 320
MIN_VISIBLE = 0.3
MARKER = "scenes.json"
_VERSION = 1  # count up when the drawing changes, so that old folders are not taken for new ones
_MIN_AREA_PX = 12  # fewer pixels than this are no object


class _Stamp:
    """One object being drawn upright on a square of `side` pixels; coordinates run from -1 to 1, y downwards."""

    def __init__(self, side: int) -> None:
        self.side = side
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
        self.x, self.y = np.meshgrid(axis, axis)
        self.bgr: Array = np.zeros((side, side, 3), np.float32)
        self.alpha: Array = np.zeros((side, side), np.float32)  # 0 outside, 1 inside, between on the edge

    def polygon(self, points: Any) -> Array:
        """Mask of a polygon of (N, 2) points."""
        mask = np.zeros((self.side, self.side), np.uint8)
        pixels = (np.asarray(points, np.float64) + 1) / 2 * self.side - 0.5
        cv2.fillPoly(mask, [np.round(pixels * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)  # 4 bits of sub-pixel
        return np.asarray(mask / np.float32(255), np.float32)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Array:
        """Mask of an ellipse, one pixel of soft edge."""
        reach = np.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2)
        return np.clip((1 - reach) * min(rx, ry) * self.side / 2 + 0.5, 0, 1).astype(np.float32)

    def add(self, mask: Array, colour: Array) -> None:
        """Paint where the mask is; the first layer's colour also lies under the soft edge."""
        if not self.alpha.any():
            self.bgr[:] = colour
        self.bgr += (colour - self.bgr) * mask[..., None]
        self.alpha = np.maximum(self.alpha, mask)

    def paint(self, mask: Array, colour: Array) -> None:
        """Paint on what is there, never beside it."""
        self.bgr += (colour - self.bgr) * mask[..., None]

    def shade(self, light: NDArray[Any]) -> None:
        """Multiply by a field of light."""
        self.bgr *= light[..., None].astype(np.float32)


def _circle(count: int, radius: Any, turn: float = 0.0) -> Array:
    angle = np.arange(count) / count * 2 * np.pi + turn
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32) * np.reshape(radius, (-1, 1))


def _ball(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    s.add(s.ellipse(0, 0, 0.92, 0.92), a)
    bent = np.arctan2(s.x, s.y + 1.4)  # panels that meet outside the ball
    s.paint((np.sin(bent * 9) > 0).astype(np.float32), b)
    depth = np.sqrt(np.clip(1 - s.x**2 - s.y**2, 0, 1))
    s.shade(0.45 + 0.75 * np.clip(0.75 * depth - 0.4 * s.x - 0.4 * s.y, 0, 1))
    s.paint(0.8 * s.ellipse(-0.35, -0.38, 0.16, 0.12), np.full(3, 255, np.float32))


def _box(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    lid = float(rng.uniform(-0.5, -0.3))
    top = [(-0.92, lid), (-0.1, lid - 0.42), (0.92, lid), (0.05, lid + 0.42)]
    left = [(-0.92, lid), (0.05, lid + 0.42), (0.05, 0.92), (-0.92, 0.5)]
    right = [(0.05, lid + 0.42), (0.92, lid), (0.92, 0.5), (0.05, 0.92)]
    for face, light in ((left, 0.75), (right, 0.5), (top, 1.15)):
        s.add(s.polygon(face), a * light)
    s.paint(s.polygon([(-0.55, lid - 0.19), (-0.4, lid - 0.26), (0.58, lid + 0.16), (0.42, lid + 0.24)]), b)
    s.paint(s.polygon([(-0.7, 0.0), (-0.3, 0.17), (-0.3, 0.5), (-0.7, 0.33)]), b * 0.8)


def _bottle(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    w, n = float(rng.uniform(0.3, 0.42)), 0.13
    outline = [(-n, -0.75), (-n, -0.45), (-w, -0.15), (-w, 0.85), (-w + 0.08, 0.93),
               (w - 0.08, 0.93), (w, 0.85), (w, -0.15), (n, -0.45), (n, -0.75)]  # fmt: skip
    s.add(s.polygon(outline), a)
    s.add(s.polygon([(-0.17, -0.94), (0.17, -0.94), (0.17, -0.74), (-0.17, -0.74)]), b)
    s.paint(((s.y > 0.1) & (s.y < 0.6)).astype(np.float32), np.full(3, 230, np.float32))
    s.paint(((s.y > 0.27) & (s.y < 0.43)).astype(np.float32), b)
    s.shade(0.6 + 0.6 * np.exp(-(((s.x + 0.12) / 0.2) ** 2)))  # a bright line down the glass


def _gear(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    teeth = int(rng.integers(7, 12))
    s.add(s.polygon(_circle(teeth * 4, np.tile([0.68, 0.93, 0.93, 0.68], teeth))), a * 0.4 + 110)
    s.shade(0.85 + 0.3 * np.sin(np.arctan2(s.y, s.x) * 2) + 0.06 * np.sin(np.hypot(s.x, s.y) * 60))  # brushed metal
    s.paint(s.ellipse(0, 0, 0.42, 0.42), a * 0.35 + 40)
    s.alpha *= 1 - s.ellipse(0, 0, 0.26, 0.26)


def _fish(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    h = float(rng.uniform(0.36, 0.5))
    s.add(s.ellipse(-0.18, 0, 0.75, h), a)
    s.add(s.polygon([(0.4, 0), (0.93, -0.48), (0.78, 0), (0.93, 0.48)]), b)
    s.add(s.polygon([(-0.3, -h + 0.08), (0.1, -h - 0.22), (0.3, -h + 0.18)]), b)
    scales = np.sin(s.x * 22) * np.sin(s.y * 22) > 0.1
    s.paint(0.5 * (scales & (s.x > -0.45) & (s.x < 0.45)), b)
    s.shade(1.1 - 0.5 * np.clip(s.y / h, -0.3, 1))
    s.paint(s.ellipse(-0.62, -0.1, 0.12, 0.12), np.full(3, 240, np.float32))
    s.paint(s.ellipse(-0.64, -0.1, 0.06, 0.06), np.full(3, 15, np.float32))


def _leaf(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    width = float(rng.uniform(0.36, 0.52))
    t = np.linspace(0, 1, 24)
    half = width * np.sin(np.pi * t**0.8)
    y = 0.68 - 1.6 * t
    s.add(s.polygon(np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])), a)
    veins = np.abs(np.sin((s.y + 0.9 * np.abs(s.x)) * 14)) < 0.25
    s.paint(0.6 * veins, a * 0.45)
    s.shade(np.where(s.x > 0, np.float32(1.1), np.float32(0.8)))
    s.add(s.polygon([(-0.04, 0.94), (0.04, 0.94), (0.02, -0.75), (-0.02, -0.75)]), a * 0.4)


def _star(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    ring = _circle(10, np.tile([0.93, float(rng.uniform(0.36, 0.46))], 5), -np.pi / 2)
    s.add(s.polygon(ring), a)
    for i in range(0, 10, 2):  # one dark half to each point, as if folded
        s.paint(s.polygon([(0, 0), ring[i], ring[(i + 1) % 10]]), a * 0.6)


def _sign(s: _Stamp, rng: np.random.Generator, a: Array, b: Array) -> None:
    sides = 8 if rng.random() < 0.6 else 3
    turn = np.pi / 8 if sides == 8 else -np.pi / 2
    ring = _circle(sides, 0.93, turn)
    s.add(s.polygon(ring), a)
    s.paint(s.polygon(ring * 0.84), np.full(3, 235, np.float32))
    s.paint(s.polygon(ring * (0.74 if sides == 8 else 0.62)), a)
    w, h = (0.5, 0.13) if sides == 8 else (0.07, 0.28)
    s.paint(s.polygon([(-w, -h), (w, -h), (w, h), (-w, h)]), np.full(3, 245, np.float32))


_Draw = Callable[[_Stamp, np.random.Generator, Array, Array], None]
# Class name, how to draw it, and how far it may be turned from upright, in degrees.
_KINDS: tuple[tuple[str, _Draw, float], ...] = (
    ("ball", _ball, 180), ("box", _box, 15), ("bottle", _bottle, 50), ("gear", _gear, 180),
    ("fish", _fish, 180), ("leaf", _leaf, 180), ("star", _star, 180), ("sign", _sign, 12),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(kind[0] for kind in _KINDS)


def _colour(rng: np.random.Generator, saturation: tuple[int, int], value: tuple[int, int]) -> Array:
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0], np.float32)


def draw_background(rng: np.random.Generator, side: int) -> Array:
    """Gradient + cloudy texture + stripes or checks + clutter: (side, side, 3) float32 in about 0..255."""
    a, b = _colour(rng, (0, 120), (40, 230)), _colour(rng, (0, 120), (40, 230))
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    across = axis[None, :] * np.cos(turn) + axis[:, None] * np.sin(turn)  # (side, side) in about -1.4..1.4
    ground: Array = a + (b - a) * np.clip(across / 2.2 + 0.5, 0, 1)[..., None].astype(np.float32)
    for cells in rng.choice([3, 6, 12, 24, 48], 2, replace=False):
        clouds = rng.normal(0, rng.uniform(4, 16), (int(cells), int(cells), 1)).astype(np.float32)
        ground += cv2.resize(clouds, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]
    pattern = rng.random()
    if pattern < 0.5:
        wave = np.sin(across * rng.uniform(8, 60) + rng.uniform(0, 6))
        if pattern < 0.2:
            other = axis[None, :] * -np.sin(turn) + axis[:, None] * np.cos(turn)
            wave = np.sign(wave * np.sin(other * rng.uniform(8, 40)))
        ground += (wave * rng.uniform(4, 18))[..., None].astype(np.float32)
    for _ in range(int(rng.integers(0, 9))):
        p, q = (rng.uniform(-0.1, 1.1, (2, 2)) * side).astype(int).tolist()
        colour, kind = _colour(rng, (0, 160), (30, 240)).tolist(), rng.integers(3)
        thickness = int(rng.integers(1, 5))
        if kind == 0:
            cv2.line(ground, p, q, colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            q = [p[0] + int(rng.integers(6, side // 4 + 7)), p[1] + int(rng.integers(6, side // 4 + 7))]
            cv2.rectangle(ground, p, q, colour, -1 if rng.random() < 0.5 else thickness)
        else:
            axes = rng.integers(4, side // 8 + 5, 2).tolist()
            cv2.ellipse(ground, p, axes, float(rng.uniform(0, 180)), 0, float(rng.uniform(120, 360)), colour, thickness)
    return ground


def draw_object(rng: np.random.Generator, kind: int, size: float, ground: Array) -> tuple[Array, Array]:
    """One object of about `size` pixels, turned and stretched: colours (h, w, 3) and alpha (h, w)."""
    _, draw, most = _KINDS[kind]
    main = _colour(rng, (90, 256), (110, 256))
    for _ in range(8):  # what has the ground's own colour cannot be seen, nor learned
        if np.abs(main - ground).max() > 70:
            break
        main = _colour(rng, (90, 256), (60, 256))
    stamp = _Stamp(int(np.clip(round(size * 1.5), 32, 256)))
    draw(stamp, rng, main, _colour(rng, (40, 256), (40, 256)))
    turn = np.deg2rad(rng.uniform(-most, most))
    flip = rng.choice([-1, 1])
    stretch = np.diag([flip * rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.0)])
    shear = np.array([[1, rng.uniform(-0.12, 0.12)], [0, 1]])
    cos, sin = np.cos(turn), np.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ shear @ stretch * (size / stamp.side)
    side = int(np.ceil(size * 1.5)) + 2
    centre = np.full(2, side / 2 - 0.5) - linear @ np.full(2, stamp.side / 2 - 0.5)
    matrix = np.concatenate([linear, centre[:, None]], 1)
    shrink = stamp.side / size
    if shrink > 2:  # bilinear sampling would skip pixels of a tiny object
        blur = (shrink - 1) / 2
        stamp.bgr, stamp.alpha = (cv2.GaussianBlur(layer, (0, 0), blur) for layer in (stamp.bgr, stamp.alpha))
    bgr = cv2.warpAffine(stamp.bgr, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return bgr, cv2.warpAffine(stamp.alpha, matrix, (side, side), flags=cv2.INTER_LINEAR)


def _camera(rng: np.random.Generator, picture: Array) -> NDArray[np.uint8]:
    """Uneven light, blur and sensor noise."""
    side = len(picture)
    corners = rng.uniform(0.65, 1.2, (2, 2, 1)).astype(np.float32)
    picture = picture * cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)[..., None]
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.2))
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, imgsz: int = 320) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one picture.

    Returns:
        picture: (imgsz, imgsz, 3) uint8 BGR.
        labels: (N, 5) float32: class, x1, y1, x2, y2 in pixels (x2 and y2 exclusive), from the drawn masks.
    """
    canvas = draw_background(rng, imgsz)
    owner = np.full((imgsz, imgsz), -1, np.int16)  # which object each pixel shows
    count = int(rng.integers(1, 9))
    share = rng.beta(2.0, 1.9, count)  # few tiny, few huge
    sizes = MIN_OBJECT_PX * (imgsz * MAX_OBJECT / MIN_OBJECT_PX) ** share
    # Mostly far to near, so that a large object seldom buries a small one.
    sizes = sizes[np.argsort(-np.log(sizes) + rng.normal(0, 0.5, count))]
    placed: list[tuple[int, tuple[int, ...], int]] = []  # class, box inside the picture, area of the whole
    for size in sizes:
        kind = int(rng.integers(len(_KINDS)))
        middle = rng.uniform(0.02, 0.98, 2) * imgsz
        at = np.clip(middle, 0, imgsz - 1).astype(int)
        bgr, alpha = draw_object(rng, kind, float(size), canvas[at[1], at[0]])
        left, top = (middle - len(alpha) / 2).round().astype(int).tolist()
        solid = alpha > 0.5
        area = int(solid.sum())
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + len(alpha), imgsz), min(top + len(alpha), imgsz)
        if area < _MIN_AREA_PX or x1 >= x2 or y1 >= y2:
            continue
        part = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        if rng.random() < 0.4:  # a soft shadow, down to the right
            dark = cv2.GaussianBlur(alpha, (0, 0), 1 + size / 24)[part]
            shift = max(1, int(size / 14))
            target = canvas[y1 + shift : y2, x1 + shift : x2]
            target *= 1 - 0.45 * dark[: len(target), : target.shape[1], None]
        region = canvas[y1:y2, x1:x2]
        region += (bgr[part] - region) * alpha[part][..., None]
        inside = solid[part]
        if not inside.any():
            continue
        owner[y1:y2, x1:x2][inside] = len(placed)
        xs, ys = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        placed.append((kind, (xs[0] + x1, ys[0] + y1, xs[-1] + 1 + x1, ys[-1] + 1 + y1), area))
    labels = [
        [kind, *box]
        for i, (kind, box, area) in enumerate(placed)
        if (owner == i).sum() >= max(MIN_VISIBLE * area, _MIN_AREA_PX / 2)
    ]
    return _camera(rng, canvas), np.asarray(labels, np.float32).reshape(-1, 5)


def draw_dataset(out: Path, *, train: int, val: int, imgsz: int = 320, seed: int = 0) -> Path:
    """Draw a data set in YOLO's layout; a broken-off call goes on where it was when it is made again.

    Args:
        out: a new or empty folder, or one that an earlier call with the same values began.
        train: number of training pictures.
        val: number of validation pictures.
        imgsz: side of each picture in pixels.
        seed: seed of everything random.

    Returns:
        The data.yaml, which is written last.

    Raises:
        ConfigError: no pictures asked for, or a side that is too small.
        RunDirError: `out` holds something else.
        StorageError: the disk refused.
    """
    if train < 1 or val < 1 or imgsz < 64:
        raise ConfigError("such a data set cannot be drawn", got=f"train={train}, val={val}, imgsz={imgsz}",
                          expected="train and val of at least 1, imgsz of at least 64")  # fmt: skip
    settings = {"version": _VERSION, "train": train, "val": val, "imgsz": imgsz, "seed": seed}
    _claim(out, settings)
    done = out / "data.yaml"
    pictures = [(split, i) for split, count in (("train", train), ("val", val)) for i in range(count)]
    with progress("drawing", len(pictures)) as task:
        for split, i in pictures:
            image = out / "images" / split / f"{i:05d}.jpg"
            labels = out / "labels" / split / f"{i:05d}.txt"
            if not (image.is_file() and labels.is_file()):
                done.unlink(missing_ok=True)  # a picture is missing, so it is not done
                rng = np.random.default_rng([seed, split == "val", i, imgsz])
                picture, boxes = draw_scene(rng, imgsz)
                quality = int(rng.integers(80, 97))
                fine, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
                if not fine:
                    raise DataError("OpenCV cannot encode JPEG", mend="reinstall opencv-python-headless")
                write_bytes(labels, _label_text(boxes, imgsz).encode())
                write_bytes(image, jpeg.tobytes())
            task.advance()
    if not done.is_file():
        lines = ["train: images/train", "val: images/val", f"nc: {len(NAMES)}", "names:"]
        lines += [f"  {i}: {name}" for i, name in enumerate(NAMES)]
        write_bytes(done, ("\n".join(lines) + "\n").encode())
    return done


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Mark a folder as this data set's own, or refuse."""
    marker = out / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
        except (OSError, ValueError):
            found = "a damaged record"
        if found == settings:
            return
        raise RunDirError(f"{out} holds another drawn data set", got=found, expected=settings,
                          mend="name another folder, or remove this one")  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirError(f"{out} is in use", got="other files", expected="a new or empty folder",
                          mend="name another folder")  # fmt: skip
    write_json(marker, settings)


def _label_text(boxes: NDArray[np.float32], imgsz: int) -> str:
    lines = []
    for kind, x1, y1, x2, y2 in boxes.astype(np.float64):
        values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines.append(" ".join([str(int(kind)), *(f"{value / imgsz:.6f}" for value in values)]) + "\n")
    return "".join(lines)
