"""Put hooks on, copy what passes, stop the forward early, leave the model as it was.

Captured tensors are clones or fresh reductions: a ``detach()``ed view would be overwritten by the next in-place module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from dna_probe.errors import BackboneError, SiteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dna_probe.sites import Site

Edit = Callable[["Tensor"], "Tensor | None"]


class _Stop(Exception):
    """Raised in the hook of the last site wanted; never leaves this module."""


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module behind ``torch.compile`` and ``DataParallel`` wrappers.

    Hooks registered on an already compiled model never run, so the compiled shell is taken off. The weights are shared.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            model = model.module
        else:
            return model


def first_tensor(value: Any) -> Tensor:
    """The tensor of a module's output: itself, the first tensor of a tuple or list, or of a mapping or dataclass.

    Raises:
        SiteError: nothing in it is a tensor.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, tuple | list):
        parts = list(value)
    else:
        parts = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for part in parts:
        if isinstance(part, torch.Tensor):
            return part
    raise SiteError(f"A hooked module returned {type(value).__name__}, which holds no tensor", fix="Choose another site")


def _replace_first(value: Any, new: Tensor) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return new
    if isinstance(value, tuple | list):
        at = next(i for i, part in enumerate(value) if isinstance(part, torch.Tensor))
        parts = [*value[:at], new, *value[at + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    raise SiteError(
        f"A hooked module returned {type(value).__name__}, which cannot be edited in place", fix="Choose another site"
    )


@contextmanager
def attached(
    model: nn.Module, sites: Mapping[str, Site], visit: Mapping[str, Edit], stop: bool = True
) -> Iterator[Callable[[Tensor], None]]:
    """Call ``visit[name](activation)`` for every site named while the model runs inside the context.

    The visitor sees the live tensor: it reduces or clones what it keeps. If it returns a tensor, that replaces the
    activation in the forward pass.

    Yields:
        ``run(batch)``, which does one forward and raises ``SiteError`` if a site did not fire. With ``stop`` it ends at
        the last of the sites; ``sites`` is in the order in which they fire.

    A module that is called twice in one forward (shared weights) is visited on its first call only.
    """
    if any(hasattr(module, "_compiled_call_impl") and module._compiled_call_impl is not None for module in model.modules()):
        raise BackboneError(
            "The model was compiled in place with model.compile()",
            "Hooks do not run inside a compiled call",
            "Pass the model as it was before compiling",
        )
    modules = dict(model.named_modules())
    fired: set[str] = set()
    last = [name for name in sites if name in visit][-1]

    def pass_on(name: str, tensor: Tensor) -> Tensor | None:
        fired.add(name)
        return visit[name](tensor)

    def on_output(name: str) -> Callable:
        def hook(module, args, output):
            if name in fired:
                return None
            edited = pass_on(name, first_tensor(output))
            if stop and name == last:
                raise _Stop
            return None if edited is None else _replace_first(output, edited)

        return hook

    def on_input(name: str) -> Callable:
        def hook(module, args):
            if name in fired:
                return None
            edited = pass_on(name, first_tensor(args))
            if stop and name == last:
                raise _Stop
            return None if edited is None else (edited, *args[1:])

        return hook

    def run(batch: Tensor) -> None:
        fired.clear()
        with suppress(_Stop):
            model(batch)
        missing = [name for name in visit if name not in fired]
        if missing:
            raise SiteError(
                f"{len(missing)} of {len(visit)} sites did not fire: {', '.join(missing[:3])}",
                "Their modules were not called in the forward pass",
                "Remove these sites, or check that the model uses them",
            )

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in visit:
            site = sites[name]
            module = modules[site.module]
            if site.side == "output":
                handles.append(module.register_forward_hook(on_output(name)))
            else:
                handles.append(module.register_forward_pre_hook(on_input(name)))
        yield run
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Turn fused attention off inside the context, so that attention probabilities exist; restore every switch after."""
    switched = [module for module in model.modules() if getattr(module, "fused_attn", False) is True]
    try:
        for module in switched:
            module.fused_attn = False
        yield
    finally:
        for module in switched:
            module.fused_attn = True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the context; every flag restored one by one after."""
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
