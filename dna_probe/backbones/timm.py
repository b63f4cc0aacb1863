"""How timm's families expose their layers and preprocessing, and how they are built by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.backbones.discovery import Fired, Layers
from dna_probe.errors import BackboneError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.images.preprocessing import Preprocessing

SEED = 0
# Where families keep their stages, in the order in which they are looked for.
STAGE_STACKS = ("stages", "layers", "levels", "transformers", "network")
STAGE_SETS = (
    ("layer1", "layer2", "layer3", "layer4"),
    ("s1", "s2", "s3", "s4"),
    ("body.layer1", "body.layer2", "body.layer3", "body.layer4"),
)
# Families whose stages hold blocks with a residual stream of their own.
NESTED_BLOCKS = ("SwinTransformer",)
_ATTENTION_NAMES = ("attn", "attention", "attns", "mlp_channels")


def is_timm(model: nn.Module) -> bool:
    return any(base.__module__.startswith("timm.models.") for base in type(model).__mro__)


def find_layers(model: nn.Module, record: Mapping[str, Fired]) -> Layers | None:
    """The layers of a timm model, or None if it is not one or follows none of the known layouts."""
    if not is_timm(model):
        return None
    blocks = members(model, "blocks")
    if blocks:
        flat = [path for block in blocks for path in ([block] if fired(record, block) else members(model, block))]
        return Layers("residual" if _is_residual(model, flat, record) else "stage", tuple(flat))
    if type(model).__name__.startswith(NESTED_BLOCKS):
        for stack in STAGE_STACKS:
            nested = [path for stage in members(model, stack) for path in members(model, f"{stage}.blocks")]
            if nested:
                return Layers("residual", tuple(nested))
    for stack in STAGE_STACKS:
        stages = [path for path in members(model, stack) if fired(record, path)]
        if len(stages) > 1:
            return Layers("stage", tuple(stages))
    known = dict(model.named_modules())
    for names in STAGE_SETS:
        if all(name in known for name in names):
            return Layers("stage", names)
    info = getattr(model, "feature_info", None)
    if isinstance(info, list):
        named = [entry["module"] for entry in info if fired(record, entry.get("module", ""))]
        if len(named) > 1:
            shapes = {record[path].output for path in named}
            one_stream = len(shapes) == 1 and _is_residual(model, named, record)
            return Layers("residual" if one_stream else "stage", tuple(named))
    return None


def members(model: nn.Module, path: str) -> list[str]:
    """Paths of the members of an ``nn.Sequential`` or ``nn.ModuleList`` at a path; empty if it is not one."""
    from torch import nn

    container: Any = model
    for part in path.split("."):
        container = getattr(container, part, None)
    return (
        [f"{path}.{key}" for key in container._modules] if isinstance(container, nn.Sequential | nn.ModuleList) else []
    )


def fired(record: Mapping[str, Fired], path: str) -> bool:
    return bool(path) and path in record and record[path].calls > 0


def _is_residual(model: nn.Module, paths: list[str], record: Mapping[str, Fired]) -> bool:
    shapes = [record[path].output or () for path in paths if path in record]
    if shapes and all(len(shape) == 3 for shape in shapes):
        return True
    return all(any(hasattr(model.get_submodule(path), name) for name in _ATTENTION_NAMES) for path in paths)


def preprocessing_of(model: nn.Module) -> tuple[Preprocessing, tuple[str, ...]]:
    """The evaluation transform of a timm model, and notes on what was assumed."""
    from timm.data import resolve_model_data_config

    from dna_probe.images.preprocessing import Preprocessing

    notes: list[str] = []
    if getattr(model, "pretrained_cfg", None) is None:
        notes.append("the model states no preprocessing: ImageNet mean and deviation, crop 0.875, bicubic assumed")
        cfg: dict[str, Any] = {}
    else:
        cfg = dict(resolve_model_data_config(model))
    # Built with img_size=...: position embeddings, or windows, are made for this size.
    parts = (getattr(model, "patch_embed", None), model, *model.children())
    sizes = [getattr(part, "img_size", None) for part in parts]
    built = next((size for size in sizes if isinstance(size, tuple) and len(size) == 2), None)
    if built:
        cfg["input_size"] = (3, *built)
    return Preprocessing.from_timm(cfg), tuple(notes)


def name_of(model: nn.Module) -> str:
    """``architecture.tag`` from a model's configuration, else its class name."""
    cfg = getattr(model, "pretrained_cfg", None)
    cfg = cfg if isinstance(cfg, Mapping) else vars(cfg) if cfg is not None and hasattr(cfg, "__dict__") else {}
    architecture, tag = cfg.get("architecture"), cfg.get("tag")
    if not architecture:
        return type(model).__name__
    return f"{architecture}.{tag}" if tag else str(architecture)


def check_name(name: str) -> str:
    """The name as timm knows it, without the ``timm/`` prefix; an error with near matches if it knows none."""
    import timm

    plain = name.removeprefix("timm/")
    architecture, _, tag = plain.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name(
            "backbone",
            name,
            ["nano", *timm.list_models()],
            BackboneError,
            "dna-probe backbones PATTERN lists them",
        )
    tagged = [known for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and plain not in tagged:
        raise unknown_name("pretrained tag", plain, tagged, BackboneError)
    return plain


def build_random(name: str, **settings: Any) -> nn.Module:
    """An untrained model, the same on every call; torch's global generator is left alone."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return timm.create_model(name, pretrained=False, **settings).eval()


def build_with(name: str, weights: str | Path) -> nn.Module:
    """A model with local weights. Its classifier, which is never probed, is given the file's number of classes."""
    import timm

    from dna_probe.backbones.weights import load, read_state, without_prefix

    state = without_prefix(read_state(weights))
    cfg = timm.get_pretrained_cfg(name)
    classifier = getattr(cfg, "classifier", None)
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    settings: dict[str, Any] = {}
    if heads:
        rows = [state[f"{head}.weight"].shape[0] for head in heads if f"{head}.weight" in state]
        settings["num_classes"] = rows[0] if rows else 0
    model = build_random(name, **settings)
    load(model, weights, state)
    return model


@dataclass(frozen=True)
class Entry:
    """One backbone that can be opened by name.

    Attributes:
        parameters: None where counting would mean building many models.
        input_size: of images, (height, width); None for texts and sounds.
        licence: what is stated for the weights; ``code_licence`` of the library that builds the model.
        modality: what it takes.
        needs: the extra of this package that it needs, or nothing.
    """

    name: str
    family: str
    parameters: int | None
    input_size: tuple[int, int] | None
    licence: str
    code_licence: str = "apache-2.0"
    modality: str = "image"
    needs: str = ""

    @property
    def takes(self) -> str:
        return self.modality if self.input_size is None else " x ".join(map(str, self.input_size))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "input_size": None if self.input_size is None else list(self.input_size)}


def is_named(name: str, pattern: str) -> bool:
    """Whether a glob matches a name, with or without its tag, from the beginning or from any word in it on; a pattern
    without wildcards only from the beginning."""
    words = re.finditer(r"[/:_.-]", name) if re.search(r"[*?[]", pattern) else ()
    starts = [0, *(place.end() for place in words)]
    plain = name.partition(".")[0]
    return any(fnmatchcase(one[start:], pattern) for one in (name, plain) for start in starts if start < len(one))


def entries(pattern: str, count_up_to: int = 12) -> list[Entry]:
    """timm's pretrained names that match a glob, with or without their tag; parameters only for a few matches."""
    import timm

    names = [name for name in timm.list_models(pretrained=True) if is_named(name, pattern)]
    found = []
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        size = tuple(cfg.input_size) if cfg else (3, 224, 224)
        found.append(
            Entry(
                name=name,
                family=timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1],
                parameters=_count(name) if len(names) <= count_up_to else None,
                input_size=(size[-2], size[-1]),
                licence=(cfg.license if cfg else None) or "not stated",
            )
        )
    return found


def _count(name: str) -> int | None:
    import timm
    import torch

    try:
        # No memory, no initialisation.
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return sum(parameter.numel() for parameter in model.parameters())
