"""Backbones from a Python file: ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dna_probe.errors import BackboneError, one_line, unknown_name

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

    from dna_probe.backbones.contract import Backbone


def is_factory(name: str) -> bool:
    """Whether a backbone name means a Python file."""
    path, _, function = name.rpartition(":")
    return name.endswith(".py") or (path.endswith(".py") and bool(function))


def build(name: str) -> nn.Module | Backbone:
    """Import the file under a name of its own, call the function, return what it made.

    Raises:
        BackboneError: no such file, it cannot be imported, no such function, it failed, or it returned something else.
    """
    from torch import nn

    from dna_probe.backbones.contract import Backbone

    path, function = split(name)
    module = _import(path)
    factory = getattr(module, function, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if callable(value) and _is_own(value, module)]
        raise unknown_name(
            "factory", function, [key for key in own if not key.startswith("_")], BackboneError, f"File {path}"
        )
    try:
        model = factory()
    except Exception as error:
        raise BackboneError(
            f"{path.name}:{function}() failed", one_line(error), "Call it in Python to see where"
        ) from error
    if not isinstance(model, nn.Module | Backbone):
        raise BackboneError(
            f"{path.name}:{function}() returned {type(model).__name__}",
            "A factory has to return a torch.nn.Module, or a Backbone where the model does not say how to read samples",
            "Return the model itself",
        )
    return model


def split(name: str) -> tuple[Path, str]:
    """``'a/b.py:make'`` -> (absolute path, ``'make'``)."""
    path_text, _, function = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise BackboneError(f"There is no file {path_text}", "", "Give an existing file as path/to/file.py:factory")
    if not function:
        raise BackboneError(f"{name} names no function", "", f"Write it as {name}:factory")
    return path.resolve(), function


def _import(path: Path) -> ModuleType:
    # A name of its own, so that a file called timm.py or build.py shadows nothing.
    name = f"_dna_probe_factory_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BackboneError(f"{path} cannot be imported", "It is not a Python file", "Give path/to/file.py:factory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if not isinstance(error, Exception):
            raise
        raise BackboneError(
            f"{path.name} cannot be imported", one_line(error), "Run it with Python to see where"
        ) from error
    return module


def _is_own(value: object, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__
