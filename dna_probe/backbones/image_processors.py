"""From an image processor of transformers to our ``Preprocessing``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import INTERPOLATIONS, Preprocessing

OWN_PREPROCESSING = "Pass preprocessing=Preprocessing(...), or wrap the model in a factory file.py:factory"
# Those that change nothing which a backbone sees, or that are mapped below.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels")
# Settings by which processors of some families do what others do not.
_OTHERS = ("crop_pct", "include_top", "keep_aspect_ratio", "rescale_offset", "size_divisor")
_NAMES = {int(value): name for name, value in INTERPOLATIONS.items()}

Triple = tuple[float, float, float]


def read_processor(processor: Any) -> tuple[Preprocessing, tuple[str, ...]]:
    """What an image processor of transformers does, as its Pillow version does it, and notes on what differs.

    Rescaling by another factor than 1/255 and missing steps go into the mean and the deviation. The torchvision version
    of a processor resizes with another rounding, by a grey level or two.

    Raises:
        BackboneError: it does a step that ``Preprocessing`` does not have.
    """
    if isinstance(getattr(processor, "data_config", None), Mapping):
        return Preprocessing.from_timm(processor.data_config), ()  # of a timm model
    kind, settings = type(processor).__name__, processor.to_dict()
    others = [step for step, wanted in settings.items() if step.startswith("do_") and wanted and step not in _STEPS]
    if others:
        raise _unlike(kind, f"It does {' and '.join(others)}")
    own = [name for name in _OTHERS if settings.get(name) and not (name == "crop_pct" and kind.startswith("ConvNext"))]
    if own or kind.startswith("Levit"):
        raise _unlike(kind, f"It goes by {' and '.join(own) or 'a rule of its own'}")
    if not settings.get("do_resize"):
        raise _unlike(kind, "It does not resize")
    try:
        geometry, notes = _geometry(kind, settings)
        mean, std = _normalisation(settings)
        interpolation = _NAMES[int(settings["resample"])] if settings.get("resample") is not None else "bilinear"
    except (KeyError, TypeError, ValueError) as error:
        raise _unlike(kind, f"Its settings are none that are known here ({error!r})") from error
    return Preprocessing(**geometry, interpolation=interpolation, mean=mean, std=std), notes


def _normalisation(settings: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Mean and deviation of pixels in 0..1 that do what the processor does to those in 0..255."""
    scale = 255 * settings["rescale_factor"] if settings.get("do_rescale") else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale
    normalises = settings.get("do_normalize")
    mean = _three(settings["image_mean"]) if normalises else (0.0, 0.0, 0.0)
    std = _three(settings["image_std"]) if normalises else (1.0, 1.0, 1.0)
    return (mean[0] / scale, mean[1] / scale, mean[2] / scale), (std[0] / scale, std[1] / scale, std[2] / scale)


def _geometry(kind: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What ``Preprocessing`` has to know of sizes and crops, and notes."""

    def crops(cut: tuple[int, int], resized: int, mode: str = "center", rounding: str = "down") -> dict[str, Any]:
        share = _share(cut[0], resized)
        return {"input_size": cut, "crop_pct": share, "crop_mode": mode, "crop_rounding": rounding}

    size = dict(settings["size"])
    crop = dict(settings["crop_size"]) if settings.get("do_center_crop") else None
    short = size.get("shortest_edge")
    if kind.startswith("ConvNext") and short:  # which crops by itself, and only small images
        if short >= 384:
            return crops((short, short), short, "squash", "even"), ()
        return crops((short, short), int(short / settings["crop_pct"])), ()
    if set(size) == {"height", "width"}:
        resized = int(size["height"]), int(size["width"])
        cut = (int(crop["height"]), int(crop["width"])) if crop else resized
        share = _share(cut[0], resized[0]) if cut[0] <= resized[0] else 0.0
        if not share or math.floor(cut[1] / share) != resized[1]:
            raise _unlike(kind, f"It resizes to {resized[0]} x {resized[1]} and crops {cut[0]} x {cut[1]}")
        odd = (resized[0] - cut[0]) % 2 or (resized[1] - cut[1]) % 2
        return crops(cut, resized[0], "squash", "down" if odd else "even"), ()
    if set(size) != {"shortest_edge"} or not short:
        raise _unlike(kind, f"It resizes to {', '.join(f'{key} = {value}' for key, value in size.items())}")
    if crop is None:
        return crops((short, short), short, rounding="even"), (
            f"{kind} does not crop: the square in the centre is read",
        )
    cut = int(crop["height"]), int(crop["width"])
    if cut[0] != cut[1] or cut[0] > short:
        raise _unlike(kind, f"It crops {cut[0]} x {cut[1]} from a shortest edge of {short}")
    return crops(cut, short), ()


def _share(cut: int, resized: int) -> float:
    """A crop share by which ``Preprocessing`` finds the size before the crop again, whatever the float error."""
    share = cut / resized
    return share if math.floor(cut / share) == resized else math.nextafter(share, 0)


def _three(values: Any) -> Triple:
    first, second, third = values if isinstance(values, list | tuple) else [values] * 3
    return float(first), float(second), float(third)


def _unlike(kind: str, why: str) -> BackboneError:
    return BackboneError(f"What {kind} does to an image cannot be done here", why, OWN_PREPROCESSING)
