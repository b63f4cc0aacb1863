"""Layers of any ``nn.Module``: torchvision's, or the user's own. What fired decides, helped by usual names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from dna_probe.backbones.discovery import TRIAL_BATCH, Fired, Layers, is_channels_first
from dna_probe.backbones.timm import STAGE_SETS
from dna_probe.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.images.preprocessing import Preprocessing


def find_layers(model: nn.Module, record: Mapping[str, Fired]) -> Layers | None:
    """The layers of a module that follows no known naming.

    In this order: the longest stack of modules that return tokens, of several stages all their stacks; ``layer1`` to
    ``layer4``; the members of the stack (or of the model itself) that give most stages, or those of the pyramid that
    this lies in. None if nothing gives a tensor.

    Raises:
        BackboneError: tokens come before the batch, or layers are added to the stream outside any module, or one layer
            runs again and again.
    """
    stacks = _stacks(model)
    blocks = _longest(stacks, record, lambda path: _token_members(model, path, record))
    if len(blocks) > 1:
        _refuse_branches(model, blocks, record)
        return Layers("residual", tuple(blocks))
    _refuse_tokens_first(model, stacks, record)
    for prefix in ("", *(f"{path}." for path in record if path)):
        for names in STAGE_SETS:
            inside = tuple(f"{prefix}{name}" for name in names)
            if all(_shape(record, path) for path in inside):
                return Layers("stage", inside)
    parents = [path for path, module in model.named_modules() if _is_composite(module)]
    for rank in (4, 3, 2):
        if rank == 3:
            _refuse_repeated(model, record)
        choices = {path: _stages(model, path, record, rank) for path in parents}
        longest = _longest(["", *stacks], record, choices.get) or max(choices.values(), key=len, default=[])
        if longest:
            ends = _pyramid_around(longest, choices.values(), record)
            tokens = rank == 3 and not is_channels_first(model, _shape(record, ends[-1]), record)
            return Layers("residual" if tokens else "stage", tuple(ends))
    return None


def _longest(stacks: list[str], record: Mapping[str, Fired], members: Callable[[str], list[str] | None]) -> list[str]:
    """Members of the longest of the stacks; of one in each stage (``stages.0.blocks``, ``stages.1.blocks``, ...), all.

    Stages change the shape. Stacks inside modules that do not, the blocks of a stream, are parts of them and are
    measured one by one.
    """
    groups: dict[str, list[str]] = {}
    for path in stacks:
        groups.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    best: list[str] = []
    most = 0
    for paths in groups.values():
        found = [members(path) or [] for path in paths]
        # Of the stages: what lies before the parts of a path behind its last number.
        shapes = [_shape(record, re.sub(r"(\.[^.\d]+)*$", "", path)) for path in paths]
        stages = not any(shapes) or 2 * len(set(shapes)) > len(shapes)
        length = sum(map(len, found)) if stages else max(map(len, found))
        if length > most:
            best, most = [path for part in found for path in part], length
    return best


def _pyramid_around(ends: list[str], choices: Iterable[list[str]], record: Mapping[str, Fired]) -> list[str]:
    """Of the stages that these lie in, those of most shapes, if these are three or more and not fewer than in the stack
    of the first; else these themselves."""

    def shapes(of: Iterable[str]) -> int:
        return len({_shape(record, path) for path in of})

    stack = ends[0].rpartition(".")[0]
    least = max(3, shapes(path for path in ends if path.rpartition(".")[0] == stack))
    around = [of for of in choices if ends[0].startswith(tuple(f"{path}." for path in of)) and shapes(of) >= least]
    # Of equals the innermost.
    return max(reversed(around), key=shapes, default=ends)


def _stacks(model: nn.Module) -> list[str]:
    from torch import nn

    return [p for p, m in model.named_modules() if p and isinstance(m, nn.Sequential | nn.ModuleList)]


def _is_composite(module: nn.Module) -> bool:
    return any(True for _ in module.children())


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
        if _is_composite(module)
        and len(_shape(record, child)) == 3
        and not is_channels_first(model, _shape(record, child), record)
    }
    if not shapes:
        return []
    commonest = Counter(shapes.values()).most_common(1)[0][0]
    return [child for child, shape in shapes.items() if shape == commonest]


def _refuse_tokens_first(model: nn.Module, stacks: list[str], record: Mapping[str, Fired]) -> None:
    for path in stacks:
        for child, module in _children(model, path).items():
            shape = (record[child].output or ()) if child in record else ()
            if _is_composite(module) and len(shape) == 3 and shape[0] != TRIAL_BATCH and shape[1] == TRIAL_BATCH:
                raise BackboneError(
                    f"The blocks of {type(model).__name__} return (tokens, batch, width): {path}",
                    "Units are read with the batch as the first axis",
                    "Build the model with batch_first=True, or use the timm version of it",
                )


def _refuse_branches(model: nn.Module, blocks: list[str], record: Mapping[str, Fired]) -> None:
    """Raise ``BackboneError`` for pairs in lists that never run themselves, none of which hands its output on."""
    stacks: dict[str, list[str]] = {}
    for path in blocks:
        stacks.setdefault(path.rpartition(".")[0], []).append(path)
    pairs = [pair for inside in stacks.values() for pair in pairwise(inside)]
    alike = len({_shape(record, path) for path in blocks}) == 1
    if len(stacks) == 1 or not alike or any(record[stack].calls for stack in stacks):
        return
    if pairs and not any(record[first].made == record[second].given for first, second in pairs):
        raise BackboneError(
            f"The layers of {type(model).__name__} add to the stream outside any module",
            f"What {blocks[0]} and {blocks[1]} return is a part of it",
            "Put each pair in a module of its own, whose forward adds",
        )


def _refuse_repeated(model: nn.Module, record: Mapping[str, Fired]) -> None:
    for path, module in model.named_modules():
        if path and _is_composite(module) and record[path].calls > 2 and len(_shape(record, path)) == 3:
            raise BackboneError(
                f"{type(model).__name__} runs its layer {path} {record[path].calls} times with the same weights",
                "Hooks read its first call only, so that one layer would be all",
                "Take a model whose layers have weights of their own",
            )


def _stages(model: nn.Module, path: str, record: Mapping[str, Fired], rank: int) -> list[str]:
    """Stage ends among the children of a module, in firing order.

    A child of several parts is a stage. Single layers are grouped: a convolution or linear opens a stage, and the
    normalisation and activation after it belong to it; pooling and dropout do not.
    """
    from torch import nn

    children = _children(model, path)
    ordered = sorted((p for p in children if len(_shape(record, p)) == rank), key=lambda p: record[p].output_at)
    ends: list[str] = []
    open_group = False
    for child in ordered:
        module = children[child]
        if _is_composite(module):
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
