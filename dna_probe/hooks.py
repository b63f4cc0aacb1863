"""Put hooks on, copy what passes, stop the forward early, leave the model as it was.

Captured tensors are clones or fresh reductions: a ``detach()``ed view would be overwritten by the next in-place module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
    import torch

    for name, module in model.named_modules():
        part = f"The part {name!r} of the model" if name else "The model"
        if isinstance(module, torch.jit.ScriptModule):
            raise BackboneError(
                f"{part} is a scripted or traced one (TorchScript)",
                "Hooks do not see what its parts return",
                "Build the model in Python and load these weights there: model.load_state_dict(scripted.state_dict())",
            )
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            raise BackboneError(
                f"{part} was compiled in place",
                "Hooks do not run inside a compiled call",
                "Pass the model as it was before compiling",
            )


def nth_tensor(value: Any, part: int) -> Tensor:
    """Tensor number ``part`` (from 0) of what a module was given or returned.

    A tensor alone is number 0. In a tuple, list, mapping or dataclass only the tensors are counted, not what is nested
    deeper.

    Raises:
        SiteError: it holds fewer tensors.
    """
    import torch

    if isinstance(value, torch.Tensor) and part == 0:
        return value
    places = _tensor_places(value)
    if part < len(places):
        return _entries(value)[places[part]]
    held = f"holds {len(places)} of the {part + 1} tensors wanted" if part else "holds no tensor"
    raise SiteError(f"A hooked module takes or returns {type(value).__name__}, which {held}", fix="Choose another site")


def _entries(value: Any) -> Mapping[Any, Any]:
    """Key or position -> entry of a container or dataclass."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    return vars(value) if hasattr(value, "__dict__") else {}


def _tensor_places(value: Any) -> list[Any]:
    import torch

    # A tensor has attributes of its own, which are not what was returned.
    if isinstance(value, torch.Tensor):
        return []
    return [key for key, entry in _entries(value).items() if isinstance(entry, torch.Tensor)]


def _replace_nth(value: Any, part: int, new: Tensor) -> Any:
    """The same container with one of its tensors exchanged; the original is not written to."""
    import torch

    if isinstance(value, torch.Tensor):
        return new
    at = _tensor_places(value)[part]
    if isinstance(value, tuple | list):
        parts = [*value[:at], new, *value[at + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    changed = copy(value)
    if isinstance(value, Mapping):
        changed[at] = new  # type: ignore[index]
    else:
        # Past a frozen dataclass's own guard: the copy is ours.
        object.__setattr__(changed, at, new)
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

    A module that is called twice in one forward (shared weights) is visited on its first call only. Several threads may
    each run a context of their own on one model; its switches (``frozen``, ``eager_attention``) are those of all.
    """
    if not visit:
        raise SiteError("No sites were asked for", fix="Name at least one")
    wanted = {name: resolve_site(name, sites) for name in visit}
    refuse_compiled(model)
    modules = dict(model.named_modules())
    fired: set[str] = set()
    runner = 0

    def is_foreign(name: str) -> bool:
        """Whether the module runs for another thread, or for the second time."""
        return name in fired or threading.get_ident() != runner

    def pass_on(name: str, tensor: Tensor) -> Tensor | None:
        fired.add(name)
        edited = visit[name](tensor)
        if edited is not None and wanted[name].kind == "pattern" and wanted[name].part:
            raise SiteError(
                f"{name} cannot be edited",
                "Its module returns these probabilities beside its output, when it has used them",
                f"Edit {name.replace('hook_pattern', 'hook_z')}, what the heads made of them",
            )
        # Counted, not "the last by name": at another input size modules may fire in another order.
        if stop and len(fired) == len(wanted):
            raise _Stop
        return edited

    def on_output(name: str) -> Callable:
        def hook(module, args, output):
            if is_foreign(name):
                return None
            part = wanted[name].part
            edited = pass_on(name, nth_tensor(output, part))
            return None if edited is None else _replace_nth(output, part, edited)

        return hook

    def on_input(name: str) -> Callable:
        def hook(module, args, kwargs):
            if is_foreign(name):
                return None
            part = wanted[name].part
            edited = pass_on(name, nth_tensor(args or kwargs, part))
            if edited is None:
                return None
            return (_replace_nth(args, part, edited), kwargs) if args else (args, _replace_nth(kwargs, part, edited))

        return hook

    def run(batch: Tensor) -> Any:
        nonlocal runner
        runner = threading.get_ident()
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
    """Fused attention off inside the context, so that attention probabilities exist; every switch restored after.

    timm's attention modules have a flag each; those of transformers look it up in the configuration of their model.
    """
    flags = [(module, module.fused_attn) for module in model.modules() if getattr(module, "fused_attn", False)]
    configurations = [(found, found._attn_implementation) for found in _attention_configurations(model)]
    try:
        for module, _ in flags:
            module.fused_attn = False  # type: ignore[assignment]
        for configuration, _ in configurations:
            configuration._attn_implementation = "eager"
        yield
    finally:
        for module, flag in flags:
            module.fused_attn = flag  # type: ignore[assignment]
        for configuration, switch in configurations:
            configuration._attn_implementation = switch


def _attention_configurations(model: nn.Module) -> list[Any]:
    """The configurations of transformers that modules of the model look at, those around others first.

    Setting the switch of one sets it in all that lie inside it, so each has to be known before.
    """
    found: dict[int, Any] = {}
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    for configuration in waiting:
        if id(configuration) not in found and hasattr(configuration, "_attn_implementation"):
            found[id(configuration)] = configuration
            waiting += [getattr(configuration, name, None) for name in getattr(configuration, "sub_configs", ())]
    return list(found.values())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside the context; every flag restored one by one after.

    timm's gradient checkpointing is off too: it passes some layers by, and the second run of the others, for gradients,
    would go without the edits that hooks made in the first. Inference mode is left, with gradients off instead: a
    tensor that was made in it and is kept by the model, such as BEiT's table of positions, could never be trained with.
    """
    import torch

    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    checkpointing = [module for module in model.modules() if getattr(module, "grad_checkpointing", False) is True]
    try:
        for module in checkpointing:
            module.grad_checkpointing = False  # type: ignore[assignment]
        for module, _ in training:
            module.training = False
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            yield
    finally:
        for module in checkpointing:
            module.grad_checkpointing = True  # type: ignore[assignment]
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)
