"""Local weights: safetensors, or a checkpoint read without running any code in it; loaded strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt")
# Where training scripts put the weights inside a checkpoint, and what wrappers put before every name.
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, out of its wrapper, names as they are.

    Raises:
        BackboneError: no such file, another format, damaged, more than tensors in it, or no state dict.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise BackboneError(f"{path} is not a weights file", f"Its name ends in {path.suffix or 'nothing'}", _FORMATS)
    if not path.is_file():
        raise BackboneError(f"There is no file {path}", _near(path), "Give an existing weights file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    return _tensors(path, content)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what ``DataParallel`` or ``torch.compile`` put before all of them."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def load(model: nn.Module, path: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Put a file's weights into a model, every name and shape fitting; the model's own dtype stays.

    Raises:
        BackboneError: as ``read_state``, or the names or shapes do not fit; the model is then as it was.
    """
    state = read_state(path) if state is None else state
    own = {name: value for name, value in model.state_dict().items() if hasattr(value, "shape")}
    if not set(own) & set(state):
        state = without_prefix(state)
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = sorted(name for name in own if name in state and own[name].shape != state[name].shape)
    if missing or unexpected or shapes:
        parts = [
            f"{len(names)} {what} ({_few(names)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", [_shapes(name, state[name], own[name]) for name in shapes]),
            )
            if names
        ]
        raise BackboneError(
            f"{Path(path).name} does not fit {type(model).__name__}",
            f"Of {len(own)} tensors: {'; '.join(parts)}",
            _advice(len(own), len(missing) + len(shapes)),
        )
    model.load_state_dict(dict(state), strict=True)


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose every parameter has its values in a random order: an untrained control of the same scales.

    It needs no knowledge of how the model was initialised. Buffers (running statistics) stay.
    """
    import torch

    model = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return model


def _advice(tensors: int, unfit: int) -> str:
    if unfit > tensors / 2:
        return "It was made for another architecture: open that one, or map its names in a factory file.py:factory"
    return (
        "It is close: build the variant that it was made for (head, input size, registers) in a factory "
        "file.py:factory and load it there"
    )


_FORMATS = f"Give a state dict as {', '.join(SUFFIXES)}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(
            f"{path} cannot be read", f"Not a whole safetensors file: {error}", "Copy it again"
        ) from error


def _read_checkpoint(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} holds more than tensors, or is no checkpoint",
            "Reading it could run code, so it was not read",
            "Save only model.state_dict(), best as .safetensors",
        ) from error
    except Exception as error:
        raise BackboneError(
            f"{path} cannot be read", one_line(error), "Copy it again, or save model.state_dict() anew"
        ) from error


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        found = (
            f"it holds {_few(map(str, content))}"
            if isinstance(content, Mapping)
            else f"it holds {type(content).__name__}"
        )
        raise BackboneError(
            f"{path} holds no state dict",
            found.capitalize(),
            f"Save model.state_dict(), plain or under {' or '.join(WRAPPERS)}",
        )
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _few(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _shapes(name: str, given: Tensor, wanted: Tensor) -> str:
    return f"{name} {'x'.join(map(str, given.shape))} instead of {'x'.join(map(str, wanted.shape))}"


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"Nor a folder {path.parent}"
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in SUFFIXES]
    near = get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"Beside it there is {' and '.join(near)}" if near else ""
