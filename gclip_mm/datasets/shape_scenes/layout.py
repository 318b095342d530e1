"""Chooses class, color and place of the objects of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .relations import OVERLAP, Thing, contains, overlap
from .shapes import coverage
from .vocabulary import CLASSES, COLORS, HOST_CLASSES, SCENE_TYPICAL_CLASSES, TYPICAL_SHARE

OBJECTS_PER_IMAGE = (3, 6)
# Radii as shares of the picture's shorter side.
RADIUS_SHARE = (0.08, 0.21)
# Minimum radius of an object that has another one inside.
HOST_RADIUS_SHARE = 0.17
INSIDE_SHARE, OCCLUDE_SHARE = 0.2, 0.3
# An object is placed only if at least this share of each object stays visible.
MIN_VISIBILITY = 0.5
# Where two boxes overlap, the shapes must overlap too, by at least this share of the smaller shape.
# Otherwise the picture would not show which of them is in front.
MIN_SHAPE_OVERLAP = 0.06
ATTEMPTS = 60


@dataclass
class Placed:
    """One object of a picture.

    Attributes:
        shape (str): Class name.
        color (str): Color name.
        alpha (np.ndarray): uint8 (height, width), coverage of each pixel by the whole shape.
        mask (np.ndarray): bool (height, width), the whole shape, hidden part included.
        radius (float): In pixels.
        center (tuple): x, y in pixels.
        thing (Thing): Box of the whole shape, draw order, color.
        nested (bool): Whether the object is inside another one, or has another one inside.
    """

    shape: str
    color: str
    alpha: np.ndarray
    mask: np.ndarray
    radius: float
    center: tuple[float, float]
    thing: Thing
    nested: bool = False


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Tight box (x1, y1, x2, y2) of a bool mask, the far edges exclusive."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def visible_masks(objects: list[Placed]) -> list[np.ndarray]:
    """Visible part of each object, in draw order: its shape minus every shape drawn later."""
    covered = np.zeros_like(objects[0].mask)
    visible = []
    for obj in reversed(objects):
        visible.append(obj.mask & ~covered)
        covered |= obj.mask
    return visible[::-1]


def _draw_class(scene: str, rng: np.random.Generator, among: tuple[str, ...] = CLASSES) -> str:
    typical = [c for c in SCENE_TYPICAL_CLASSES[scene] if c in among]
    pool = typical if typical and rng.random() < TYPICAL_SHARE else list(among)
    return pool[rng.integers(len(pool))]


def _make(
    shape: str,
    color: str,
    center: tuple[float, float],
    radius: float,
    depth: int,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Placed | None:
    """Draw the mask of one object; None if it does not fit into the picture."""
    angle = float(rng.uniform(-25, 25))
    if shape in ('arrow', 'crescent'):
        angle = float(rng.uniform(0, 360))  # these have no upright position
    stretch = float(rng.uniform(0.85, 1.18))
    margin = 1.15 * radius
    width, height = size
    x, y = center
    if not (margin <= x <= width - margin and margin <= y <= height - margin):
        return None
    alpha = coverage(shape, center, radius, angle, stretch, size)
    mask = alpha >= 128
    thing = Thing(mask_box(mask), depth, color)
    return Placed(shape, color, alpha, mask, radius, center, thing)


def _propose(
    objects: list[Placed], scene: str, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Placed | None, Placed | None, str]:
    """Draw one candidate.

    Returns:
        The candidate, or None if it does not fit; the object that it is placed inside or in front
        of, or None; and 'in', 'over' or 'free'.
    """
    short = min(size)
    depth = len(objects)
    colors = tuple(COLORS)
    color = colors[rng.integers(len(colors))]
    radius = float(rng.uniform(*RADIUS_SHARE)) * short
    draw = rng.random()
    hosts = [
        o
        for o in objects
        if o.shape in HOST_CLASSES and not o.nested and o.radius >= HOST_RADIUS_SHARE * short
    ]
    free = [o for o in objects if not o.nested]
    if draw < INSIDE_SHARE and hosts:
        host, how = hosts[rng.integers(len(hosts))], 'in'
        radius = host.radius * float(rng.uniform(0.36, 0.46))
        x, y = (c + float(rng.uniform(-0.08, 0.08)) * host.radius for c in host.center)
        center = (x, y)
    elif draw < INSIDE_SHARE + OCCLUDE_SHARE and free:
        host, how = free[rng.integers(len(free))], 'over'
        reach = float(rng.uniform(0.6, 0.95)) * (radius + host.radius)
        angle = float(rng.uniform(0, 2 * np.pi))
        center = (
            host.center[0] + reach * float(np.cos(angle)),
            host.center[1] + reach * float(np.sin(angle)),
        )
    else:
        host, how = None, 'free'
        x, y = (float(rng.uniform(0, side)) for side in size)
        center = (x, y)
    shape = _draw_class(scene, rng)
    if host is not None and color == host.color:
        return None, host, how
    return _make(shape, color, center, radius, depth, size, rng), host, how


def _fits(new: Placed, host: Placed | None, how: str, objects: list[Placed]) -> bool:
    """Whether the relation of the new object to every other one is unambiguous."""
    for other in objects:
        meets = overlap(new.thing, other.thing)
        if other is host and how == 'in':
            if not contains(other.thing, new.thing):
                return False
        elif other is host:
            shared = int((new.mask & other.mask).sum())
            smaller = min(int(new.mask.sum()), int(other.mask.sum()))
            if contains(other.thing, new.thing) or contains(new.thing, other.thing):
                return False
            if meets < OVERLAP or shared < MIN_SHAPE_OVERLAP * smaller:
                return False
        elif meets > 0:
            return False
    seen = visible_masks([*objects, new])
    return all(
        s.sum() >= MIN_VISIBILITY * o.mask.sum() for s, o in zip(seen[:-1], objects, strict=True)
    )


def layout(scene: str, size: tuple[int, int], rng: np.random.Generator) -> list[Placed]:
    """Place 3 to 6 objects.

    Args:
        scene (str): Scene class; determines which object classes are preferred.
        size (tuple): Width and height of the picture, in pixels.
        rng (np.random.Generator): Source of randomness.

    Returns:
        list[Placed]: In draw order, the backmost object first. At least two objects; crowded
        pictures may have fewer than the number drawn.
    """
    wanted = int(rng.integers(OBJECTS_PER_IMAGE[0], OBJECTS_PER_IMAGE[1] + 1))
    objects: list[Placed] = []
    attempts = 0
    while len(objects) < 2 or (len(objects) < wanted and attempts < ATTEMPTS):
        attempts += 1
        new, host, how = _propose(objects, scene, size, rng)
        if new is None or not _fits(new, host, how, objects):
            continue
        if host is not None and how == 'in':
            host.nested = new.nested = True
        objects.append(new)
    return objects
