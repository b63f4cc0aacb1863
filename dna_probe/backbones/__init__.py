"""Backbones: names of timm, transformers and open_clip, ``nano``, factories, any ``nn.Module``: all one contract."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dna_probe.backbones.contract import Backbone
    from dna_probe.backbones.families import Family as Family
    from dna_probe.backbones.families import register_family as register_family
    from dna_probe.backbones.timm import Entry
    from dna_probe.batches import Reader
    from dna_probe.images.preprocessing import Preprocessing as Preprocessing

__all__ = ["Family", "Preprocessing", "list_backbones", "open_backbone", "register_family"]

_HOMES = {
    "Family": "backbones.families",
    "Preprocessing": "images.preprocessing",
    "register_family": "backbones.families",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"dna_probe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dna_probe.backbones' has no attribute {name!r}")


SOURCES = (
    "'nano', a timm name (dna-probe backbones lists them), hf:ID or hf:FOLDER of transformers, tl:ID or tl:FOLDER for "
    "the same through TransformerLens, "
    "open_clip:ARCHITECTURE/TAG, or path/to/file.py:factory"
)


def open_backbone(
    model: Any,
    weights: str | Path | None = None,
    device: str = "auto",
    random_weights: bool = False,
    preprocessing: Reader | None = None,
) -> Backbone:
    """A backbone from a name, a Python factory, a module or a backbone.

    Args:
        model: a ``Backbone``, an ``nn.Module`` (of timm, transformers, open_clip, torchvision or your own), ``"nano"``,
            a timm name (with or without ``timm/``), ``"hf:ID"`` or ``"hf:FOLDER"`` of transformers,
            ``"tl:ID"`` or ``"tl:FOLDER"`` for the same through TransformerLens (``"tl:FOLDER#language"``: of one for
            images and texts its language blocks), ``"open_clip:ARCHITECTURE/TAG"``, or ``"path/to/file.py:factory"``.
        weights: local weights (``.safetensors``, ``.pth``, ``.pt``) for a backbone opened by name.
        device: ``auto`` (a module stays where it is; a name goes to CUDA if there is one), ``cpu`` or ``cuda``. A
            module that is elsewhere is copied there; yours is not moved.
        random_weights: an untrained control under a fixed seed: freshly initialised for names, for factories and
            modules a copy with the values of every parameter shuffled.
        preprocessing: instead of the model's own; for texts and sounds a ``TextPreprocessing`` or
            ``AudioPreprocessing``.

    Raises:
        BackboneError: what was asked for cannot be built, loaded or run; it says why and what to do.
    """
    from torch import nn

    from dna_probe.backbones import huggingface, open_clip, plain, timm, transformer_lens
    from dna_probe.backbones.contract import Backbone
    from dna_probe.hooks import refuse_compiled, unwrap

    place = _device(device)
    if weights is not None and random_weights:
        raise BackboneError("Both weights and random weights were asked for", fix="Leave one of them out")
    if not isinstance(model, Backbone | nn.Module | str | Path):
        raise BackboneError(
            f"A value of type {type(model).__name__} is not a backbone", "", f"Give an nn.Module, {SOURCES}"
        )
    if weights is not None and not isinstance(model, str | Path):
        raise BackboneError(
            "Weights can only be given with a name",
            "Loading them into your model would change it",
            "Load them first: model.load_state_dict(...)",
        )
    if isinstance(model, Backbone) and not random_weights and preprocessing in (None, model.preprocessing):
        if place is None or place == model.device:
            return model
        preprocessing = model.preprocessing
    notes: tuple[str, ...] = ()
    spec: str | None = None
    shuffle = random_weights
    if isinstance(model, Backbone):
        module, name, spec = model.module, model.name, model.spec
        weights, notes = model.weights, model.model_notes
        shuffle, random_weights = random_weights, random_weights or model.random_weights
        preprocessing = preprocessing or model.preprocessing
    elif isinstance(model, nn.Module):
        module = unwrap(model)
        named = next((source for source in (transformer_lens, huggingface) if source.is_own(module)), timm)
        name = named.name_of(module)
    else:
        made, name, spec, shuffle = _build(str(model), weights, random_weights)
        if isinstance(made, Backbone):
            preprocessing, notes = preprocessing or made.preprocessing, made.model_notes
        module = made.module if isinstance(made, Backbone) else made
        place = place or _device("cuda" if _has_cuda() else "cpu")
    refuse_compiled(module)
    if shuffle:
        from dna_probe.backbones.weights import shuffled

        module = shuffled(module)
        notes = (*notes, "untrained control: the values of every parameter are shuffled")
    towered = next((source for source in (transformer_lens, huggingface, open_clip) if source.is_own(module)), None)
    if preprocessing is None:
        source: Any = towered or (timm if timm.is_timm(module) else plain)
        preprocessing, assumed = source.preprocessing_of(module)
        notes = (*notes, *assumed)
    if towered is not None:
        module, taken = towered.tower(module)
        notes = (*notes, *taken)
    return Backbone(
        _on(module, place, own=not isinstance(model, nn.Module | Backbone)),
        preprocessing,
        name,
        spec=spec,
        weights=str(Path(weights).expanduser().resolve()) if weights is not None else None,
        random_weights=random_weights,
        notes=tuple(dict.fromkeys(notes)),
    )


def list_backbones(pattern: str = "*") -> list[Entry]:
    """What can be opened by name and matches a glob: ``nano`` first, models of transformers and open_clip of which more
    can be named, then timm's pretrained names."""
    from fnmatch import fnmatchcase

    from dna_probe.backbones import catalogue, nano, timm

    own = []
    if fnmatchcase("nano", pattern):
        parameters = sum(parameter.numel() for parameter in nano.network().parameters())
        own = [timm.Entry("nano", "vision_transformer", parameters, (nano.SIZE, nano.SIZE), "mit", "mit")]
    listed = [entry for entry in catalogue.ENTRIES if timm.is_named(entry.name, pattern)]
    return [*own, *listed, *timm.entries(pattern.removeprefix("timm/"))]


def _build(name: str, weights: str | Path | None, random_weights: bool) -> tuple[nn.Module | Backbone, str, str, bool]:
    """What was built, its name, the string that opens it again, and whether its weights are still to be shuffled."""
    import torch

    from dna_probe.backbones import download, factory, huggingface, nano, open_clip, timm, transformer_lens
    from dna_probe.backbones.contract import Backbone
    from dna_probe.backbones.weights import SUFFIXES, load

    if name.startswith(huggingface.PREFIXES):
        module, spec = huggingface.build(name, weights, random_weights)
        return module, name, spec, False
    if name.startswith(transformer_lens.PREFIX):
        module, spec = transformer_lens.build(name, weights, random_weights)
        return module, name, spec, False
    if name.startswith(open_clip.PREFIX):
        return open_clip.build(name, weights, random_weights), name, name, False
    if name.endswith(SUFFIXES):
        raise BackboneError(
            f"{name!r} is a weights file, not a backbone",
            "It does not say which architecture it is for",
            f"Name the architecture and give the file as weights (--weights {name})",
        )
    if factory.is_factory(name):
        path, function = factory.split(name)
        made = factory.build(name)
        if weights is not None:
            load(made.module if isinstance(made, Backbone) else made, weights)
        return made, f"{path.name}:{function}", f"{path}:{function}", random_weights
    if name == "nano":
        if random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(timm.SEED)
                return nano.network().eval(), name, name, False
        module = nano.build()
        if weights is not None:
            load(module, weights)
        return module, name, name, False
    name = timm.check_name(name)
    if weights is not None:
        return timm.build_with(name, weights), name, name, False
    if random_weights:
        return timm.build_random(name), name, name, False
    module = download.build_pretrained(name)
    # With its tag: what timm takes for the default may change.
    return module, timm.name_of(module), timm.name_of(module), False


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _device(name: str) -> torch.device | None:
    """The device, or None for ``auto``."""
    import torch

    if name == "auto":
        return None
    try:
        place = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise BackboneError(f"Unknown device {name!r}", "", "Known: auto, cpu, cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError(
            f"The device {name!r} is not there",
            "torch sees no CUDA device",
            "Use auto or cpu, or install a CUDA build of torch",
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise BackboneError(
            f"The device {name!r} is not there", f"torch sees {torch.cuda.device_count()}", "Use a lower number"
        )
    return torch.device("cuda", place.index or 0) if place.type == "cuda" else place


def _on(module: nn.Module, place: torch.device | None, own: bool) -> nn.Module:
    from copy import deepcopy

    first = next(module.parameters(), None)
    if place is None or first is None or first.device == place:
        return module
    return (module if own else deepcopy(module)).to(place)
