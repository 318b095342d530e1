"""Background textures: one function a family, which returns (height, width) float32 in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np

from .vocabulary import SCENE_TEXTURES


def _smooth_noise(height: int, width: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Noise in [0, 1] with a correlation length of about ``cell`` pixels."""
    rows, cols = (max(2, int(np.ceil(side / cell)) + 1) for side in (height, width))
    coarse = rng.random((rows, cols), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y, x


def waves(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Horizontal waves with curved crests."""
    y, x = _grid(height, width)
    period = rng.uniform(9, 16)
    length, start = rng.uniform(30, 60), rng.uniform(0, 6)
    meander = rng.uniform(1.5, 3.5) * np.sin(2 * np.pi * x / length + start)
    drift = 6 * _smooth_noise(height, width, 40, rng)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (y + meander + drift) / period)


def blades(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Short, nearly upright strokes."""
    field = np.full((height, width), 0.35, np.float32)
    count = height * width // 45
    xs, ys = rng.uniform(0, width, count), rng.uniform(0, height, count)
    lean, length = rng.normal(0, 2.2, count), rng.uniform(5, 12, count)
    shade = rng.random(count)
    for x, y, dx, dy, value in zip(xs, ys, lean, length, shade, strict=True):
        cv2.line(field, (int(x), int(y)), (int(x + dx), int(y - dy)), float(value), 1)
    return field


def bricks(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks with dark joints, every other row shifted by half a brick."""
    brick_h, brick_w = rng.uniform(9, 14), rng.uniform(20, 30)
    y, x = _grid(height, width)
    y, x = y + rng.uniform(0, brick_h), x + rng.uniform(0, brick_w)
    row = np.floor(y / brick_h).astype(int)
    shifted = x + (row % 2) * brick_w / 2
    col = np.floor(shifted / brick_w).astype(int)
    shade = rng.uniform(0.55, 1.0, (row.max() + 1, col.max() + 1)).astype(np.float32)[row, col]
    joint = (y % brick_h < 1.8) | (shifted % brick_w < 1.8)
    return np.where(joint, 0.1, shade).astype(np.float32)


def ripples(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Slanted, warped ridges with one steep side."""
    y, x = _grid(height, width)
    angle = np.deg2rad(rng.choice([-1, 1]) * rng.uniform(28, 62))
    along = x * np.cos(angle) + y * np.sin(angle)
    phase = (along + 14 * _smooth_noise(height, width, 45, rng)) / rng.uniform(10, 17)
    return (phase % 1.0).astype(np.float32)


def planks(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Vertical boards with grain along their length."""
    board = rng.uniform(18, 30)
    _, x = _grid(height, width)
    x = x + rng.uniform(0, board)
    col = np.floor(x / board).astype(int)
    shade = rng.uniform(0.4, 0.8, col.max() + 1).astype(np.float32)[col]
    coarse = rng.random((max(2, height // 24), width), dtype=np.float32)
    grain = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(x % board < 1.5, 0.05, shade + 0.35 * (grain - 0.5)).clip(0, 1)


_TEXTURES = {
    'waves': waves,
    'blades': blades,
    'bricks': bricks,
    'ripples': ripples,
    'planks': planks,
}

# Range of the usual hues of a texture, in degrees.
_HUES = {
    'waves': (180, 240),
    'blades': (75, 150),
    'bricks': (0, 30),
    'ripples': (25, 55),
    'planks': (15, 45),
}
# Share of the pictures with a random hue, so that the pattern identifies the scene, not the color.
_REPAINTED_SHARE = 0.25


def hsv_to_bgr(hue_deg: float, saturation: float, value: float) -> np.ndarray:
    """Convert hue in degrees, saturation and value in [0, 1] to BGR, float32 (3,) in [0, 255]."""
    hsv = np.array([[[hue_deg % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255


def background(scene: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Paint the background of a scene.

    Returns:
        np.ndarray: float32, (height, width, 3), BGR in [0, 255].
    """
    width, height = size
    texture = SCENE_TEXTURES[scene]
    pattern = _TEXTURES[texture](height, width, rng)[..., None]
    low, high = (0, 360) if rng.random() < _REPAINTED_SHARE else _HUES[texture]
    hue, saturation = rng.uniform(low, high), rng.uniform(0.15, 0.45)
    dark = hsv_to_bgr(hue, saturation, rng.uniform(0.25, 0.4))
    light = hsv_to_bgr(hue + rng.uniform(-10, 10), saturation * 0.8, rng.uniform(0.55, 0.8))
    return (dark + (light - dark) * pattern).astype(np.float32)
