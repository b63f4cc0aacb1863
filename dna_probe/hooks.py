"""Put hooks on, copy what passes, stop the forward early, leave the model as it was.

Captured tensors are clones or fresh reductions: a ``detach()``ed view would be overwritten by the next in-place module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from dna_probe.errors import BackboneError, SiteError
from dna_probe.sites import resolve_site

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dna_probe.sites import Site

Edit = Callable[["Tensor"], "Tensor | None"]


class _Stop(Exception):
    """Raised in the hook of the site that fires last; never leaves this module."""


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module behind ``torch.compile`` and ``DataParallel`` wrappers.

    Hooks registered on an already compiled model never run, so the compiled shell is taken off. The weights are shared.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast("nn.Module", model._orig_mod)
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            model = cast("nn.Module", model.module)
        else:
            return model


def refuse_compiled(model: nn.Module) -> None:
    """Raise ``BackboneError`` if the model, or a part of it, runs as a compiled call that hooks cannot enter."""
    for name, module in model.named_modules():
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            raise BackboneError(
                f"{f'The part {name!r} of the model' if name else 'The model'} was compiled in place",
                "Hooks do not run inside a compiled call",
                "Pass the model as it was before compiling",
            )


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
    raise SiteError(
        f"A hooked module returned {type(value).__name__}, which holds no tensor", fix="Choose another site"
    )


def _replace_first(value: Any, new: Tensor) -> Any:
    """The same container with its first tensor exchanged; the original is not written to."""
    import torch

    if isinstance(value, torch.Tensor):
        return new
    if isinstance(value, tuple | list):
        at = next(i for i, part in enumerate(value) if isinstance(part, torch.Tensor))
        parts = [*value[:at], new, *value[at + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        changed = copy(value)
        changed[next(key for key, part in value.items() if isinstance(part, torch.Tensor))] = new  # type: ignore[index]
        return changed
    field = next(key for key, part in vars(value).items() if isinstance(part, torch.Tensor))
    changed = copy(value)
    # Past a frozen dataclass's own guard: the copy is ours.
    object.__setattr__(changed, field, new)
    return changed


@contextmanager
def attached(
    model: nn.Module, sites: Mapping[str, Site], visit: Mapping[str, Edit], stop: bool = True
) -> Iterator[Callable[[Tensor], Any]]:
    """Call ``visit[name](activation)`` for every site named while the model runs inside the context.

    The visitor sees the live tensor: it reduces or clones what it keeps. If it returns a tensor, that replaces the
    activation in the forward pass.

    Yields:
        ``run(batch)``, which does one forward and raises ``SiteError`` if a site did not fire. With ``stop`` it ends as
        soon as all of them have, and returns None; else it returns the model's output.

    A module that is called twice in one forward (shared weights) is visited on its first call only.
    """
    if not visit:
        raise SiteError("No sites were asked for", fix="Name at least one")
    wanted = {name: resolve_site(name, sites) for name in visit}
    refuse_compiled(model)
    modules = dict(model.named_modules())
    fired: set[str] = set()

    def pass_on(name: str, tensor: Tensor) -> Tensor | None:
        fired.add(name)
        edited = visit[name](tensor)
        # Counted, not "the last by name": at another input size modules may fire in another order.
        if stop and len(fired) == len(wanted):
            raise _Stop
        return edited

    def on_output(name: str) -> Callable:
        def hook(module, args, output):
            if name in fired:
                return None
            edited = pass_on(name, first_tensor(output))
            return None if edited is None else _replace_first(output, edited)

        return hook

    def on_input(name: str) -> Callable:
        def hook(module, args, kwargs):
            if name in fired:
                return None
            edited = pass_on(name, first_tensor(args or kwargs))
            if edited is None:
                return None
            return (_replace_first(args, edited), kwargs) if args else (args, _replace_first(kwargs, edited))

        return hook

    def run(batch: Tensor) -> Any:
        fired.clear()
        output = None
        with suppress(_Stop):
            output = model(batch)
        missing = [name for name in visit if name not in fired]
        if missing:
            raise SiteError(
                f"{len(missing)} of {len(visit)} sites did not fire: {', '.join(missing[:3])}",
                "Their modules were not called in the forward pass",
                "Remove these sites, or check that the model uses them",
            )
        return output

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name, site in wanted.items():
            module = modules[site.module]
            if site.side == "output":
                handles.append(module.register_forward_hook(on_output(name)))
            else:
                handles.append(module.register_forward_pre_hook(on_input(name), with_kwargs=True))
        yield run
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Fused attention off inside the context, so that attention probabilities exist; every switch restored after."""
    switched = [(m, m.fused_attn) for m in model.modules() if getattr(m, "fused_attn", False)]
    try:
        for module, _ in switched:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module, switch in switched:
            module.fused_attn = switch  # type: ignore[assignment]


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
