"""Images drawn by formulas: the whole training set of `nano`, made of random numbers and nobody's pictures.

A category is one set of formula parameters; an instance is one drawing of it, with small parameter changes, another
viewpoint or other noise, and always with other colours, so that colour never gives the category away. Every family
returns a cloud of points with a tag per point (which map, or which contour, drew it); `splat` makes it an image.

Formula-driven supervised learning:  Kataoka et al., "Pre-training without Natural Images", ACCV 2020 / IJCV 2022.
Few instances per category suffice:  Nakamura et al., "Pre-training Vision Transformers with Very Limited Synthesized
Images" (OFDB), ICCV 2023; we follow it in keeping the bank small and leaving variety to augmentation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
Parameters = dict[str, Any]
Cloud = tuple[np.ndarray, np.ndarray]  # points (n, 2) in about [-1, 1], tags (n,) of small integers

WALKERS, WARM_UP, RECORDED = 4096, 10, 12
LEAST_FILL = 0.10  # share of the canvas that a category's attractor must touch


# --- iterated function systems -------------------------------------------------------------------------------------


def _rotation(rng: Rng, dim: int) -> np.ndarray:
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(rng.normal(size=(dim, dim)))
    return q * np.sign(np.diag(r))


def _ifs(rng: Rng, dim: int) -> Parameters:
    """A random system of 2 to 8 contracting affine maps in `dim` dimensions.

    The maps are drawn by their singular values, whose weighted sum is kept in a narrow band, because most systems with
    uniformly random entries (the original FractalDB search) collapse to dust: Anderson & Farrell, "Improving Fractal
    Pre-training", WACV 2022.
    """
    while True:
        count = int(rng.integers(2, 9))
        values = np.sort(rng.uniform(0.1, 1.0, size=(count, dim)), axis=1)[:, ::-1]
        weights = np.array([1.0] + [2.0] * (dim - 1))
        total = dim * (5 + count + rng.uniform()) / 4  # in the plane: between (5 + n) / 2 and (6 + n) / 2
        values = values * total / (values @ weights).sum()
        if values.max() < 0.95:
            break
    matrices = np.stack([_rotation(rng, dim) @ np.diag(v) @ _rotation(rng, dim) for v in values])
    # Maps are chosen in proportion to the area they cover (Barnsley), with a floor so that none starves.
    chance = np.prod(values, axis=1) + 0.02
    return {"matrices": matrices, "shifts": rng.uniform(-1, 1, size=(count, dim)), "chance": chance / chance.sum()}


def _walk(parameters: Parameters, rng: Rng) -> Cloud:
    """The chaos game, many walkers at once."""
    matrices, shifts = parameters["matrices"].astype(np.float32), parameters["shifts"].astype(np.float32)
    # FractalDB makes instances by scaling the parameters a little; the norm is capped so that the maps still contract.
    matrices = matrices * rng.uniform(0.88, 1.12, size=matrices.shape).astype(np.float32)
    norm = np.linalg.norm(matrices, ord=2, axis=(1, 2))
    matrices = matrices / np.maximum(1.0, norm / 0.96)[:, None, None]
    edges = np.cumsum(parameters["chance"])[:-1]
    points = rng.uniform(-1, 1, size=(WALKERS, shifts.shape[1])).astype(np.float32)
    kept, tags = [], []
    for step in range(WARM_UP + RECORDED):
        choice = np.searchsorted(edges, rng.random(WALKERS))
        points = (matrices[choice] @ points[:, :, None])[:, :, 0] + shifts[choice]
        if step >= WARM_UP:
            kept.append(points)
            tags.append(choice)
    return np.concatenate(kept), np.concatenate(tags)


def _frame(points: np.ndarray, margin: float = 0.9) -> np.ndarray:
    """Centre and scale a cloud so that nearly all of it lies in [-margin, margin]."""
    low, high = np.percentile(points[::7], [1, 99], axis=0)
    return (points - (low + high) / 2) * (2 * margin / max(float((high - low).max()), 1e-6))


def fractal_category(rng: Rng) -> Parameters:
    """FractalDB: a plane iterated function system. Kataoka et al., ACCV 2020."""
    while True:
        parameters = _ifs(rng, 2)
        if _fill(fractal_instance(parameters, rng)[0]) >= LEAST_FILL:
            return parameters


def fractal_instance(parameters: Parameters, rng: Rng) -> Cloud:
    points, tags = _walk(parameters, rng)
    return _frame(points), tags


def fractal3d_category(rng: Rng) -> Parameters:
    """ExFractalDB: a three-dimensional system seen from many sides. Kataoka et al., "Replacing Labeled Real-Image
    Datasets with Auto-Generated Contours", CVPR 2022."""
    while True:
        parameters = _ifs(rng, 3)
        if _fill(fractal3d_instance(parameters, rng)[0]) >= LEAST_FILL:
            return parameters


def fractal3d_instance(parameters: Parameters, rng: Rng) -> Cloud:
    points, tags = _walk(parameters, rng)
    return _frame((points @ _rotation(rng, 3).astype(np.float32))[:, :2]), tags


def _fill(points: np.ndarray, size: int = 64) -> float:
    """Share of a size x size canvas touched by the cloud."""
    cells = np.floor((points + 1) * size / 2).astype(int)
    cells = cells[((cells >= 0) & (cells < size)).all(axis=1)]
    return len(np.unique(cells[:, 1] * size + cells[:, 0])) / size**2


# --- contours ------------------------------------------------------------------------------------------------------


def _smooth_noise(rng: Rng, knots: int, count: int) -> np.ndarray:
    """Periodic one-dimensional value noise in [-1, 1]: random knots, cosine interpolation (for Perlin's)."""
    values = rng.uniform(-1, 1, size=knots)
    position = np.arange(count) * knots / count
    left = position.astype(int)
    blend = (1 - np.cos(np.pi * (position - left))) / 2
    return values[left] * (1 - blend) + values[(left + 1) % knots] * blend


def contour_category(rng: Rng) -> Parameters:
    """RCDB: nested radial contours, polygons whose vertices are displaced. Kataoka et al., CVPR 2022."""
    return {
        "vertices": int(np.exp(rng.uniform(np.log(3), np.log(60)))),
        "polygons": int(rng.integers(1, 25)),
        "shrink": rng.uniform(0.80, 0.97),
        "turn": rng.uniform(-0.3, 0.3),  # radians between one contour and the next
        "aspect": rng.uniform(0.5, 1.0),
        "noise": rng.uniform(0.0, 0.35),
        "knots": int(rng.integers(3, 24)),
        "width": np.exp(rng.uniform(np.log(0.004), np.log(0.03))),
    }


def contour_instance(parameters: Parameters, rng: Rng) -> Cloud:
    count, vertices = 1800, parameters["vertices"]
    corner = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    bumps = _smooth_noise(rng, parameters["knots"], vertices)
    position = np.arange(count) * vertices / count
    left = position.astype(int)
    blend = (position - left)[:, None]
    clouds, tags, scale, tilt = [], [], 0.9, rng.uniform(0, 2 * np.pi)
    for index in range(parameters["polygons"]):
        radius = scale * (1 + parameters["noise"] * (bumps + 0.3 * rng.uniform(-1, 1, size=vertices)))
        angle = corner + index * parameters["turn"]
        polygon = np.stack([radius * np.cos(angle), parameters["aspect"] * radius * np.sin(angle)], axis=1)
        clouds.append(polygon[left] * (1 - blend) + polygon[(left + 1) % vertices] * blend)
        tags.append(np.full(count, index))
        scale *= parameters["shrink"]
    return _turn(_thicken(np.concatenate(clouds), parameters["width"], rng), tilt), np.concatenate(tags)


def atom_category(rng: Rng) -> Parameters:
    """VisualAtom: sinusoidal waves on elliptic orbits. Takashima et al., "Visual Atoms: Pre-training Vision
    Transformers with Sinusoidal Waves", CVPR 2023."""
    return {
        "orbits": int(rng.integers(1, 14)),
        "frequencies": np.exp(rng.uniform(0, np.log(60), size=2)).astype(int),
        "amplitudes": rng.uniform(0.03, 0.28, size=2),
        "axes": rng.uniform(0.45, 0.9, size=2),
        "phase": rng.uniform(0, 2 * np.pi),
        "width": np.exp(rng.uniform(np.log(0.004), np.log(0.03))),
        "ripple": rng.uniform(0.0, 0.05),
    }


def atom_instance(parameters: Parameters, rng: Rng) -> Cloud:
    count, orbits = 2400, parameters["orbits"]
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    (n1, n2), (a1, a2) = parameters["frequencies"], parameters["amplitudes"]
    wave = a1 * np.sin(n1 * angle) + a2 * np.sin(n2 * angle + parameters["phase"])
    clouds, tags = [], []
    for index in range(orbits):
        orbit = (orbits - index) / orbits
        radius = orbit * (1 + wave + parameters["ripple"] * _smooth_noise(rng, 12, count))
        clouds.append(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None] * parameters["axes"])
        tags.append(np.full(count, index))
    points = _thicken(np.concatenate(clouds), parameters["width"], rng)
    return _turn(points, rng.uniform(0, 2 * np.pi)), np.concatenate(tags)


def _thicken(points: np.ndarray, width: float, rng: Rng, copies: int = 3) -> np.ndarray:
    """Give a line a width by jittering copies of its points; tags repeat in `splat`."""
    return np.concatenate([points + rng.normal(scale=width, size=points.shape) for _ in range(copies)])


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, -s], [s, c]])


# --- drawing -------------------------------------------------------------------------------------------------------


def splat(cloud: Cloud, size: int, rng: Rng, colours: int = 6) -> np.ndarray:
    """Draw a cloud as a uint8 colour image: random bright palette by tag over a random dark ground, flat or sloping.

    Every fifth drawing is a negative. With ink and ground free to be lighter or darker at equal odds, no linear patch
    embedding sees the figure at first, and a network this small hardly starts to learn.

    Points land in the nearest pixel, without smoothing: the network should meet pixel-sharp detail.
    """
    points, tags = cloud
    tags = np.resize(tags, len(points)) % colours  # line copies reuse their tags
    cells = np.floor((points + 1) * size / 2).astype(np.int64)
    inside = ((cells >= 0) & (cells < size)).all(axis=1)
    flat = (tags * size + cells[:, 1]) * size + cells[:, 0]
    counts = np.bincount(flat[inside], minlength=colours * size * size).reshape(colours, -1).T
    density = counts.sum(axis=1, keepdims=True)
    palette = rng.uniform(110, 255, size=(colours, 3))
    ink = counts @ palette / np.maximum(density, 1)
    # Early saturation shows thin lines; late saturation shows the density inside a fractal. Both occur.
    cover = 1 - np.exp(-density / max(float(density[density > 0].mean()), 1e-6) * rng.uniform(0.7, 4.0))
    ramp = np.linspace(-1, 1, size)
    direction = rng.uniform(0, 2 * np.pi)
    slope = (np.cos(direction) * ramp[:, None] + np.sin(direction) * ramp[None, :]).reshape(-1, 1) / 2.83 + 0.5
    first, second = rng.uniform(0, 110, size=(2, 3))
    second = first if rng.random() < 0.5 else second
    ground = first * (1 - slope) + second * slope
    image = ground * (1 - cover) + ink * cover
    if rng.random() < 0.2:
        image = 255 - image
    return np.clip(image + 0.5, 0, 255).astype(np.uint8).reshape(size, size, 3)


FAMILIES: dict[str, tuple[Callable[[Rng], Parameters], Callable[[Parameters, Rng], Cloud]]] = {
    "fractal": (fractal_category, fractal_instance),
    "fractal3d": (fractal3d_category, fractal3d_instance),
    "contour": (contour_category, contour_instance),
    "atom": (atom_category, atom_instance),
}


def draw(category: int, instance: int, *, seed: int = 0, size: int = 128) -> np.ndarray:
    """One image (size, size, 3) of one category; the same numbers always give the same image."""
    make, vary = list(FAMILIES.values())[category % len(FAMILIES)]
    parameters = make(np.random.default_rng([seed, category]))
    rng = np.random.default_rng([seed, category, instance + 1])
    return splat(vary(parameters, rng), size, rng)


def bank(categories: int, instances: int, *, seed: int = 0, size: int = 128) -> np.ndarray:
    """All images (categories, instances, size, size, 3), families taking turns."""
    images = np.empty((categories, instances, size, size, 3), dtype=np.uint8)
    for category in range(categories):
        for instance in range(instances):
            images[category, instance] = draw(category, instance, seed=seed, size=size)
    return images
