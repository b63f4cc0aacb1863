"""The built-in images: photographs that installed packages bring along, and forgeries made from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.forge import FORGERS, LOCAL_FORGERS, SMALLEST, forge
from dna_probe.images.reading import read_image
from dna_probe.images.sets import FAKE, REAL, ImageSet


@dataclass(frozen=True)
class Attribution:
    """Whose photograph it is, under what terms, and which installed package brings it."""

    author: str
    licence: str
    package: str
    file: str
    split: str


_PUBLIC, _CC0 = "public domain", "CC0 1.0"
# Both splits hold colour and grey, things and textures, and photographs that were JPEG files.
ATTRIBUTIONS: dict[str, Attribution] = {
    "astronaut": Attribution("NASA", _PUBLIC, "skimage", "data/astronaut.png", "fit"),
    "brick": Attribution("CC0Textures", _CC0, "skimage", "data/brick.png", "test"),
    "camera": Attribution("Lav Varshney", _CC0, "skimage", "data/camera.png", "fit"),
    "chelsea": Attribution("Stefan van der Walt", _CC0, "skimage", "data/chelsea.png", "fit"),
    "clock": Attribution("Stefan van der Walt", _PUBLIC, "skimage", "data/clock_motion.png", "test"),
    "coffee": Attribution("Rachel Michetti", _CC0, "skimage", "data/coffee.png", "test"),
    "coins": Attribution("Brooklyn Museum", "no known copyright restrictions", "skimage", "data/coins.png", "fit"),
    "grass": Attribution("linolafett", _CC0, "skimage", "data/grass.png", "fit"),
    "gravel": Attribution("CC0Textures", _CC0, "skimage", "data/gravel.png", "fit"),
    "hubble": Attribution("NASA, ESA", _PUBLIC, "skimage", "data/hubble_deep_field.jpg", "fit"),
    "motorcycle": Attribution(
        "Scharstein et al., Middlebury College, GCPR 2014",
        "as distributed with scikit-image (Middlebury 2014 stereo benchmark)",
        "skimage",
        "data/motorcycle_left.png",
        "fit",
    ),
    "rocket": Attribution("SpaceX", _PUBLIC, "skimage", "data/rocket.jpg", "fit"),
    "china": Attribution("danielbuechele", "CC BY 2.0", "sklearn", "datasets/images/china.jpg", "test"),
    "flower": Attribution("vultilion", "CC BY 2.0", "sklearn", "datasets/images/flower.jpg", "fit"),
    "grace_hopper": Attribution(
        "James S. Davis, United States Navy", _PUBLIC, "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "test"
    ),
}
_FEWEST = 6
# Standard deviation of the brightness, 0..255: below it a crop is sky, wall or blur.
_FLAT = 10.0


@cache
def probe_set(size: int = 160, seed: int = 0, per_photograph: int = 8) -> ImageSet:
    """Real crops and forged twins of them, in memory: about 100 real and 200 fake images of `size` x `size` pixels.

    Up to `per_photograph` crops are cut from each photograph at random places, flat ones left out. Each crop has two
    forgeries of itself, one of the whole image and one of a region, the forgers taking turns. So content, size,
    colour and codec are the same in both classes, and only the trace differs. Photographs that were JPEG files are
    first shrunk, by a different factor each: otherwise the forgeries would be known by the block grid that they no
    longer have.

    Groups are the photographs, generators the forgers' names, and splits are "fit" and "test": no photograph is in
    both. Nothing is downloaded. The set is built once per process and shared: do not change its images. Raises
    `DataError` where too few of the photographs are installed.
    """
    if size < SMALLEST:
        raise DataError(f"Crops of {size} pixels are too small to forge", f"they need {SMALLEST}")
    crops = [
        (name, crop)
        for name, photograph in photographs().items()
        for crop in _crops(photograph, name, size, per_photograph, seed)
    ]
    groups = [name for name, _ in crops for _ in range(3)]
    splits = [ATTRIBUTIONS[name].split for name in groups]
    if set(splits) != {"fit", "test"}:
        raise DataError(
            f"Crops of {size} pixels do not fit into the built-in photographs", "", "ask for a smaller size"
        )
    generators, images = _forge_twins([crop for _, crop in crops], seed)
    return ImageSet(
        images=tuple(images),
        labels=np.array([REAL if name == "real" else FAKE for name in generators]),
        generators=tuple(generators),
        groups=tuple(groups),
        splits=tuple(splits),
        origin="built-in probe set",
    )


def _forge_twins(crops: list[Image.Image], seed: int) -> tuple[list[str], list[Image.Image]]:
    """Each crop and after it its two forgeries, with their generators' names."""
    from threadpoolctl import threadpool_limits

    whole = [name for name in FORGERS if name not in LOCAL_FORGERS]
    local = [name for name in FORGERS if name in LOCAL_FORGERS]
    generators: list[str] = []
    images: list[Image.Image] = []
    # One thread: these matrices are too small for more, and the pixels must not depend on how many there are.
    with threadpool_limits(1):
        for turn, crop in enumerate(crops):
            rng = np.random.default_rng([seed, turn])
            makers = (whole[turn % len(whole)], local[turn % len(local)])
            generators += ["real", *makers]
            images += [crop, *(forge(crop, maker, rng) for maker in makers)]
    return generators, images


def photographs() -> dict[str, Image.Image]:
    """The photographs that the installed packages bring along, by name, RGB. See `ATTRIBUTIONS`."""
    found = {}
    for name, credit in ATTRIBUTIONS.items():
        spec = find_spec(credit.package)
        folders = spec.submodule_search_locations if spec is not None else None
        path = Path(next(iter(folders)), credit.file) if folders else None
        if path is not None and path.is_file():
            found[name] = read_image(path)
    if len(found) < _FEWEST or len({ATTRIBUTIONS[name].split for name in found}) < 2:
        raise DataError(
            f"Only {len(found)} of the {len(ATTRIBUTIONS)} built-in photographs are installed",
            "they come inside scikit-image, scikit-learn and matplotlib",
            "install those packages from their wheels, or give your own images",
        )
    return found


def _crops(photograph: Image.Image, name: str, size: int, most: int, seed: int) -> list[Image.Image]:
    """Crops on a grid with a random corner that overlap by a sixth at most, without flat ones, in random order."""
    rng = np.random.default_rng([seed, *name.encode()])
    if ATTRIBUTIONS[name].file.endswith(".jpg"):
        factor = rng.uniform(0.76, 0.84)
        smaller = (round(photograph.width * factor), round(photograph.height * factor))
        photograph = photograph.resize(smaller, Image.Resampling.LANCZOS)
    tops, lefts = (_starts(length, size, rng) for length in (photograph.height, photograph.width))
    corners = [(top, left) for top in tops for left in lefts]
    crops = []
    for at in rng.permutation(len(corners)):
        top, left = corners[at]
        crop = photograph.crop((left, top, left + size, top + size))
        if np.asarray(crop.convert("L"), dtype=np.float32).std() >= _FLAT:
            crops.append(crop)
        if len(crops) == most:
            break
    return crops


def _starts(length: int, size: int, rng: np.random.Generator) -> list[int]:
    if length < size:
        return []
    count = int((length - size) // (size * 5 / 6)) + 1
    step = size if count * size <= length else (length - size) // max(count - 1, 1)
    slack = length - size - step * (count - 1)
    first = int(rng.integers(0, slack + 1))
    return [first + step * place for place in range(count)]
