"""Outlines of the ten shapes, as polygons of unit radius around the origin (y points down)."""

from __future__ import annotations

import cv2
import numpy as np

# The hole of a ring, as a share of its radius.
RING_HOLE = 0.58
# Masks are filled at this many times the picture's resolution, then downsampled by averaging.
SUPERSAMPLE = 4


def _polar(angles_deg: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    angles = np.deg2rad(angles_deg)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _regular(corners: int, start_deg: float) -> np.ndarray:
    return _polar(start_deg + np.arange(corners) * 360.0 / corners, 1.0)


def _star() -> np.ndarray:
    return _polar(-90 + np.arange(10) * 36.0, np.where(np.arange(10) % 2 == 0, 1.0, 0.45))


def _cross() -> np.ndarray:
    a, b = 0.95, 0.32
    quarter = [(b, -a), (b, -b), (a, -b)]
    corners = []
    for turn in range(4):
        cos, sin = round(np.cos(turn * np.pi / 2)), round(np.sin(turn * np.pi / 2))
        corners += [(x * cos - y * sin, x * sin + y * cos) for x, y in quarter]
    return np.array(corners, dtype=np.float64)


def _crescent() -> np.ndarray:
    outer = _polar(np.linspace(50, 310, 40), 1.0)
    # The inner arc connects the horns of the outer arc and is curved in the same direction.
    horn = outer[0]
    center_x, radius = 0.75, np.hypot(horn[0] - 0.75, horn[1])
    horn_angle = np.rad2deg(np.arctan2(horn[1], horn[0] - center_x))
    inner = _polar(np.linspace(360 - horn_angle, horn_angle, 30), radius) + (center_x, 0.0)
    return np.concatenate([outer, inner])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack([x, y + 2.5], axis=1)
    return outline / np.linalg.norm(outline, axis=1).max()


def _arrow() -> np.ndarray:
    return np.array(
        [(1, 0), (0.15, -0.8), (0.15, -0.34), (-0.95, -0.34)]
        + [(-0.95, 0.34), (0.15, 0.34), (0.15, 0.8)]
    )


_OUTLINES: dict[str, list[np.ndarray]] = {
    'circle': [_regular(64, 0)],
    'square': [_regular(4, 45)],
    'triangle': [_regular(3, -90)],
    'star': [_star()],
    'cross': [_cross()],
    'ring': [_regular(64, 0), _regular(64, 0) * RING_HOLE],
    'crescent': [_crescent()],
    'heart': [_heart()],
    'arrow': [_arrow()],
    'hexagon': [_regular(6, 0)],
}


def coverage(
    shape: str,
    center: tuple[float, float],
    radius: float,
    angle_deg: float,
    stretch: float,
    size: tuple[int, int],
) -> np.ndarray:
    """Coverage of each pixel by a shape.

    Args:
        shape (str): One of ``CLASSES``.
        center (tuple): x and y of the centre, in pixels.
        radius (float): Radius of the circle around the unstretched shape, in pixels.
        angle_deg (float): Clockwise rotation, in degrees.
        stretch (float): Width over height before rotation; the area is preserved.
        size (tuple): Width and height of the picture, in pixels.

    Returns:
        np.ndarray: uint8, (height, width); 255 means full coverage.
    """
    width, height = size
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
    contours = []
    for outline in _OUTLINES[shape]:
        points = (outline * scale) @ turn.T * radius + center
        contours.append(np.round(points * SUPERSAMPLE).astype(np.int32))
    fine = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(fine, contours, 255)  # the even-odd rule leaves the ring's hole empty
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
