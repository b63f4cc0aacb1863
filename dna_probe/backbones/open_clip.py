"""Image towers of open_clip: opened by ``open_clip:ARCHITECTURE/TAG``, or taken from a model of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dna_probe.backbones import download, plain, timm
from dna_probe.errors import BackboneError, one_line, unknown_name
from dna_probe.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

PREFIX = "open_clip:"
_URL_CACHE = Path("~/.cache/clip")
_CROP_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}


def is_own(model: nn.Module) -> bool:
    return any(base.__module__.startswith("open_clip.") for base in type(model).__mro__)


def build(name: str, weights: str | Path | None, random_weights: bool) -> nn.Module:
    """The whole model that ``open_clip:ARCHITECTURE/TAG`` names; with weights of the user's or none, the tag may lack.

    Raises:
        BackboneError: open_clip is not installed, knows no such architecture or tag, or the weights are out of reach or
            do not fit.
    """
    try:
        import open_clip
    except ImportError as error:
        raise BackboneError(
            f"{name!r} needs open_clip", "It is not installed", "pip install 'dna-probe[open-clip]'"
        ) from error
    import torch

    from dna_probe.backbones.weights import load

    architecture, _, tag = name.removeprefix(PREFIX).partition("/")
    if architecture not in open_clip.list_models():
        raise unknown_name("open_clip architecture", architecture, open_clip.list_models(), BackboneError)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise unknown_name(f"pretrained tag of {architecture}", tag, tags, BackboneError)
    stated = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if weights is not None or random_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(timm.SEED)
            model = _create(open_clip, name, architecture, stated)
        if weights is not None:
            load(model, weights)
        return model.eval()
    if not tag:
        raise BackboneError(
            f"{name!r} does not say which weights", f"Known: {', '.join(tags) or 'none'}", f"Write {name}/TAG"
        )
    place = _place(stated)
    cached = (_URL_CACHE.expanduser() / place.file_name).is_file() if place.url else download.is_cached(place)
    if not cached:
        try:
            download.require_server(name, place)
        except BackboneError as error:
            raise BackboneError(error.what, error.why, download.WAYS_OUT) from error
    with download.impatient(offline=cached):
        return _create(open_clip, name, architecture, stated, tag).eval()


def _create(
    open_clip: Any, name: str, architecture: str, stated: Mapping[str, Any], pretrained: str | None = None
) -> nn.Module:
    """The model as a tag states it: with its activation, which open_clip leaves to the caller, and its pixels."""
    import logging

    silenced = logging.root.manager.disable
    # It warns on the root logger of what was asked for: random weights.
    logging.disable(max(silenced, logging.WARNING))
    try:
        return open_clip.create_model(
            architecture,
            pretrained=pretrained,
            pretrained_text=False,
            force_quick_gelu=bool(stated.get("quick_gelu")),
            force_preprocess_cfg=dict(stated),
        )
    except Exception as error:
        raise BackboneError(f"{name!r} could not be loaded", one_line(error), download.WAYS_OUT) from error
    finally:
        logging.disable(silenced)


def _place(stated: Mapping[str, Any]) -> Any:
    """Where the weights of a tag lie, in the words of a timm configuration."""
    repository, _, file = str(stated.get("hf_hub") or "").rpartition("/")
    url = "" if repository else str(stated.get("url") or "")
    return SimpleNamespace(
        file=None,
        state_dict=None,
        hf_hub_id=repository or None,
        hf_hub_filename=file or "open_clip_pytorch_model.bin",
        url=url,
        file_name=url.rpartition("/")[2],
    )


def tower(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The tower for images, or the timm model in it, and a note that it is not the whole model."""
    from torch import nn

    visual = getattr(model, "visual", model)
    notes = () if visual is model else (f"of {type(model).__name__} the tower for images is probed",)
    trunk = getattr(visual, "trunk", None)
    return trunk if isinstance(trunk, nn.Module) else visual, notes


def preprocessing_of(model: nn.Module) -> tuple[Preprocessing, tuple[str, ...]]:
    """What open_clip itself does to an image before this tower, or an assumed transform and a note that says so."""
    visual: Any = getattr(model, "visual", model)
    stated = getattr(visual, "preprocess_cfg", None)
    if not isinstance(stated, Mapping):
        part, _ = tower(model)
        return (timm if timm.is_timm(part) else plain).preprocessing_of(part)
    size, mode = stated["size"], stated.get("resize_mode") or "shortest"
    notes: tuple[str, ...] = ()
    if mode == "longest":
        notes = ("images are padded with the mean colour, where open_clip pads with one grey level",)
    return Preprocessing(
        input_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        crop_pct=1.0,
        crop_mode=_CROP_MODES[mode],
        interpolation="bilinear" if stated.get("interpolation") == "bilinear" else "bicubic",
        mean=tuple(stated["mean"]),
        std=tuple(stated["std"]),
    ), notes
