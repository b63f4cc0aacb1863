"""Layers of any ``nn.Module``: torchvision's, or the user's own. What fired decides, not what things are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dna_probe.backbones.discovery import TRIAL_BATCH, Fired, Layers
from dna_probe.backbones.timm import STAGE_SETS
from dna_probe.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.images.preprocessing import Preprocessing


def find_layers(model: nn.Module, record: Mapping[str, Fired]) -> Layers | None:
    """The layers of a module that follows no known naming.

    In this order: the longest stack of modules that return tokens of one shape; ``layer1`` to ``layer4``; the members
    of the stack (or of the model itself) that give most stages. None if nothing gives a tensor.
    """
    stacks = _stacks(model)
    tokens = [(path, _token_members(model, path, record)) for path in stacks]
    best = max(tokens, key=lambda entry: len(entry[1]), default=("", []))
    if len(best[1]) > 1:
        return Layers("residual", tuple(best[1]))
    _refuse_tokens_first(model, stacks, record)
    known = dict(model.named_modules())
    for names in STAGE_SETS:
        if all(name in known and _shape(record, name) for name in names):
            return Layers("stage", names)
    for ranks in ((4,), (3,), (2,)):
        choices = [_stages(model, path, record, ranks) for path in ["", *stacks]]
        longest = max(choices, key=len)
        if longest:
            return Layers("residual" if ranks == (3,) else "stage", tuple(longest))
    return None


def _stacks(model: nn.Module) -> list[str]:
    from torch import nn

    return [p for p, m in model.named_modules() if p and isinstance(m, nn.Sequential | nn.ModuleList) and len(m) > 1]


def _children(model: nn.Module, path: str) -> dict[str, nn.Module]:
    parent = model.get_submodule(path) if path else model
    return {f"{path}.{name}" if path else name: child for name, child in parent.named_children()}


def _shape(record: Mapping[str, Fired], path: str) -> tuple[int, ...]:
    shape = record[path].output if path in record else None
    return shape if shape and shape[0] == TRIAL_BATCH else ()


def _token_members(model: nn.Module, path: str, record: Mapping[str, Fired]) -> list[str]:
    """Members that are modules of several parts and return (n, tokens, width), all of the commonest shape."""
    shapes = {
        child: _shape(record, child)
        for child, module in _children(model, path).items()
        if any(True for _ in module.children()) and len(_shape(record, child)) == 3
    }
    if not shapes:
        return []
    commonest = Counter(shapes.values()).most_common(1)[0][0]
    return [child for child, shape in shapes.items() if shape == commonest]


def _refuse_tokens_first(model: nn.Module, stacks: list[str], record: Mapping[str, Fired]) -> None:
    for path in stacks:
        for child, module in _children(model, path).items():
            shape = (record[child].output or ()) if child in record else ()
            composite = any(True for _ in module.children())
            if composite and len(shape) == 3 and shape[0] != TRIAL_BATCH and shape[1] == TRIAL_BATCH:
                raise BackboneError(
                    f"The blocks of {type(model).__name__} return (tokens, batch, width): {path}",
                    "Units are read with the batch as the first axis",
                    "Build the model with batch_first=True, or use the timm version of it",
                )


def _stages(model: nn.Module, path: str, record: Mapping[str, Fired], ranks: tuple[int, ...]) -> list[str]:
    """Stage ends among the children of a module, in firing order.

    A child of several parts is a stage. Single layers are grouped: a convolution or linear opens a stage, and the
    normalisation and activation after it belong to it; pooling and dropout do not.
    """
    from torch import nn

    children = _children(model, path)
    ordered = sorted((p for p in children if len(_shape(record, p)) in ranks), key=lambda p: record[p].output_at)
    ends: list[str] = []
    open_group = False
    for child in ordered:
        module = children[child]
        if any(True for _ in module.children()):
            ends.append(child)
            open_group = False
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            ends.append(child)
            open_group = True
        elif open_group and record[child].calls == 1 and _shape(record, child) == _shape(record, ends[-1]):
            # One activation module used all over the network fires in many places; only its own stage may claim it.
            if not isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity):
                ends[-1] = child
        else:
            open_group = False
    return ends


def preprocessing_of(model: nn.Module) -> tuple[Preprocessing, tuple[str, ...]]:
    """From ``model.pretrained_cfg`` where it has one, else ImageNet's usual transform and a note that says so.

    The size is the model's own, where it or its configuration states one.
    """
    from dna_probe.images.preprocessing import Preprocessing

    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(cfg, Mapping):
        return Preprocessing.from_timm(cfg), ()
    size = getattr(model, "image_size", None) or getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(size, tuple | list) and len(size) == 2:
        size = (int(size[0]), int(size[1]))
    else:
        size = (size, size) if isinstance(size, int) else (224, 224)
    taken = f"{size[0]} x {size[1]}, crop 0.875, bicubic, ImageNet mean and deviation"
    note = f"the model states no preprocessing: {taken} assumed"
    return Preprocessing(input_size=size), (note,)
