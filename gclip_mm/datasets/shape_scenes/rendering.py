"""Renders a layout: background, objects with outline and shadow, light, blur, noise."""

from __future__ import annotations

import cv2
import numpy as np

from .layout import Placed
from .textures import background, hsv_to_bgr
from .vocabulary import COLORS

HUE_JITTER_DEG = 8


def _shift(field: np.ndarray, dx: float, dy: float) -> np.ndarray:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    return cv2.warpAffine(field, matrix, (field.shape[1], field.shape[0]))


def _paint(
    canvas: np.ndarray, obj: Placed, light: tuple[float, float], rng: np.random.Generator
) -> None:
    """Draw one object and its shadow over the canvas, in place."""
    alpha = obj.alpha.astype(np.float32)[..., None] / 255
    reach = max(1.5, 0.1 * obj.radius)
    shadow = cv2.GaussianBlur(obj.alpha, (0, 0), 0.06 * obj.radius + 0.6)
    shadow = _shift(shadow, -reach * light[0], -reach * light[1])[..., None] / 255
    canvas *= 1 - 0.55 * shadow

    hue = COLORS[obj.color] + rng.uniform(-HUE_JITTER_DEG, HUE_JITTER_DEG)
    fill = hsv_to_bgr(hue, rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.0))
    # Slight shading towards the light, so that an object is not uniformly colored.
    height, width = obj.mask.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    toward = ((x - obj.center[0]) * light[0] + (y - obj.center[1]) * light[1]) / obj.radius
    shade = 1 + rng.uniform(0.05, 0.18) * toward[..., None].clip(-1, 1)
    body = fill * shade
    core = cv2.erode(obj.alpha, np.ones((3, 3), np.uint8)).astype(np.float32)[..., None] / 255
    body = body * (0.35 + 0.65 * core)  # a darker rim, one pixel wide
    canvas += alpha * (body - canvas)


def _illumination(
    size: tuple[int, int], light: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Brightness factor (height, width, 1): a gradient towards the light, or a spotlight."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = x / width - 0.5, y / height - 0.5
    depth = rng.uniform(0.1, 0.6)
    if rng.random() < 0.5:
        slope = u * light[0] + v * light[1]
        factor = 1 + depth * slope
    else:
        cu, cv = rng.uniform(-0.4, 0.4, 2)
        factor = 1 + depth * (0.25 - ((u - cu) ** 2 + (v - cv) ** 2))
    return (factor * rng.uniform(0.7, 1.15))[..., None].astype(np.float32)


def render(
    objects: list[Placed], scene: str, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Draw a picture.

    Args:
        objects (list[Placed]): In draw order.
        scene (str): Scene class.
        size (tuple): Width and height, in pixels.
        rng (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: uint8, (height, width, 3), BGR.
    """
    canvas = background(scene, size, rng)
    angle = rng.uniform(0, 2 * np.pi)
    light = float(np.cos(angle)), float(np.sin(angle))
    for obj in objects:
        _paint(canvas, obj, light, rng)
    canvas *= _illumination(size, light, rng)
    blur = rng.uniform(0, 1.1)
    if blur > 0.35:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blur)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += noise * rng.uniform(2, 14)
    return np.round(canvas).clip(0, 255).astype(np.uint8)
