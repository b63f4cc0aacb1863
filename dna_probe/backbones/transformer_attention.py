"""Where the modules of transformers have their attention: probabilities and heads, by what they return, not by name.

Attention probabilities are a tensor whose rows sum to one, returned beside the output. The heads lie side by side in
the input of the last linear map that is not fed what the attention module itself was fed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dna_probe.backbones.discovery import (
    CLASS_TOKEN_NAMES,
    MAX_PREFIX,
    TRIAL_BATCH,
    Fired,
    Sites,
    attention_notes,
)
from dna_probe.errors import SiteError
from dna_probe.hooks import nth_tensor
from dna_probe.sites import Site

if TYPE_CHECKING:
    from torch import nn


def is_transformers(model: nn.Module) -> bool:
    return any(base.__module__.startswith("transformers.models.") for base in type(model).__mro__)


def main_input(model: nn.Module) -> str:
    """What the model is given: ``pixel_values``, ``input_ids``, ``input_values`` or ``input_features``."""
    return str(getattr(model, "main_input_name", "pixel_values"))


@dataclass
class Attention:
    """A module that returned attention probabilities of ``heads`` heads over ``length`` tokens as its tensor ``part``.

    ``projections`` are the linear maps in it that were not fed what the module itself was fed: the last of them takes
    the outputs of the heads side by side. Without any, the module's own output is these.
    """

    part: int
    heads: int
    length: int
    projections: tuple[str, ...] = ()


@contextmanager
def watching(model: nn.Module) -> Iterator[dict[str, Attention]]:
    """Note which modules of a transformers model return attention probabilities while it runs inside the context.

    Yields:
        Module path -> what it returned on its first call; filled while the model runs, empty for other models.
    """
    found: dict[str, Attention] = {}
    fed: dict[str, int] = {}

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if path not in fed:
                fed[path] = _address(args or kwargs)

        return hook

    def after(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            attention = None if path in found else _attention(output)
            if attention is not None:
                inside = (p for p in linear if p.startswith(f"{path}.") and fed.get(p, fed[path]) != fed[path])
                found[path] = replace(attention, projections=tuple(inside))

        return hook

    modules = {path: module for path, module in model.named_modules() if path} if is_transformers(model) else {}
    linear = [path for path, module in modules.items() if is_linear(module)]
    handles = []
    try:
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            if any(True for _ in module.children()):
                handles.append(module.register_forward_hook(after(path)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: ``nn.Linear``, or the ``Conv1D`` of transformers."""
    from torch import nn

    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _address(value: Any) -> int:
    try:
        return nth_tensor(value, 0).data_ptr()
    except SiteError:
        return 0


def _attention(output: Any) -> Attention | None:
    """The attention probabilities among what a module returned: (n, heads, queries, keys), rows that sum to one."""
    if not isinstance(output, tuple):
        return None
    for part in range(1, len(output)):
        try:
            tensor = nth_tensor(output, part)
        except SiteError:
            return None
        if tensor.ndim != 4 or tensor.shape[0] != TRIAL_BATCH or tensor.shape[2] != tensor.shape[3]:
            continue
        if tensor.is_floating_point() and tensor.min() >= 0 and bool(((tensor.float().sum(-1) - 1).abs() < 0.02).all()):
            return Attention(part, tensor.shape[1], tensor.shape[3])
    return None


def complete(model: nn.Module, found: Sites, record: Mapping[str, Fired], attention: Mapping[str, Attention]) -> Sites:
    """The sites found in a transformers model, with those of its attention, and prefix tokens counted from its patches.

    Args:
        found: what ``discovery.find_sites`` found.
        record: what ``discovery.watch`` noted.
        attention: what ``watching`` noted in the same forward pass; if it is empty, ``found`` is returned.
    """
    ends = [site for site in found.sites.values() if site.kind == "residual" and site.layout == "tokens"]
    if not attention or not ends:
        return found
    sites, grid = list(found.sites.values()), found.grid
    raster = _raster(model, record, ends)
    if raster is not None:
        grid = raster
        prefix = (record[ends[0].module].output or (0, 0))[1] - math.prod(raster)
        named = any(name.rpartition(".")[2] in CLASS_TOKEN_NAMES for name, _ in model.named_parameters())
        sites = [_with_prefix(site, prefix, named and prefix > 0) for site in sites]
    for end in [site for site in sites if site.kind == "residual" and site.layout == "tokens"]:
        names = {site.name for site in sites}
        inside = [mlp_site(model, end, record), heads_site(end, record, attention)]
        inside += [pattern_site(end, record, attention)] if grid else []
        sites += [site for site in inside if site is not None and site.name not in names]
    sites.sort(key=lambda site: getattr(record[site.module], f"{site.side}_at"))
    named_sites = {site.name: site for site in sites}
    said = _attention_notes(model, found.sites, record)
    notes = tuple(note for note in found.notes if note not in said)
    if len(notes) < len(found.notes):
        notes += _attention_notes(model, named_sites, record)
    return Sites(named_sites, max(site.prefix_tokens for site in sites), grid, notes)


def _with_prefix(site: Site, count: int, class_token: bool) -> Site:
    return replace(site, prefix_tokens=count, class_token=class_token) if site.layout == "tokens" else site


def _attention_notes(model: nn.Module, sites: Mapping[str, Site], record: Mapping[str, Fired]) -> tuple[str, ...]:
    """What discovery says of layers without a pattern site."""
    ends = [site for site in sites.values() if site.kind == "residual"]
    patterned = {site.layer for site in sites.values() if site.kind == "pattern"}
    return attention_notes(model, [end for end in ends if end.layer not in patterned], len(ends), record)


def heads_site(end: Site, record: Mapping[str, Fired], attention: Mapping[str, Attention]) -> Site | None:
    """Where the outputs of a block's heads lie side by side over all its tokens, or None."""
    path = _attention_of(end, record, attention)
    if path is None:
        return None
    last = max(attention[path].projections, key=lambda projection: record[projection].input_at, default=None)
    side: Literal["input", "output"] = "output" if last is None else "input"
    shape = (record[path].output if last is None else record[last].input) or ()
    heads, over = attention[path].heads, (record[end.module].output or ())[:2]
    if len(shape) != 3 or shape[:2] != over or shape[2] % heads:
        return None
    name, tokens = f"blocks.{end.layer}.attn.hook_z", (end.prefix_tokens, end.class_token)
    return Site(name, "heads", end.layer, last or path, side, "tokens", shape[2], *tokens, heads)


def pattern_site(end: Site, record: Mapping[str, Fired], attention: Mapping[str, Attention]) -> Site | None:
    """The attention probabilities of a block over all its tokens, which its attention module returns, or None."""
    path = _attention_of(end, record, attention)
    if path is None:
        return None
    name, tokens = f"blocks.{end.layer}.attn.hook_pattern", (end.prefix_tokens, end.class_token)
    heads, part = attention[path].heads, attention[path].part
    return Site(name, "pattern", end.layer, path, "output", "tokens", heads, *tokens, part=part)


def mlp_site(model: nn.Module, end: Site, record: Mapping[str, Fired]) -> Site | None:
    """The input of the last ``Conv1D`` of a block's MLP (GPT-2), or None. Other MLPs are found by discovery."""
    shape = record[end.module].output or ()
    closing = [
        path
        for path, module in model.named_modules()
        if path.startswith(f"{end.module}.mlp.") and type(module).__name__ == "Conv1D" and record[path].output == shape
    ]
    if not closing:
        return None
    path = max(closing, key=lambda last: record[last].input_at)
    name, tokens = f"blocks.{end.layer}.mlp.hook_post", (end.prefix_tokens, end.class_token)
    return Site(name, "mlp", end.layer, path, "input", "tokens", (record[path].input or (0,))[-1], *tokens)


def _attention_of(end: Site, record: Mapping[str, Fired], attention: Mapping[str, Attention]) -> str | None:
    """The outermost module of a block that returns probabilities over all the block's tokens; the first, of several."""
    length = (record[end.module].output or (0, 0))[1]
    inside = [p for p in attention if p.startswith(f"{end.module}.") and attention[p].length == length]
    return min(inside, key=lambda path: (path.count("."), record[path].output_at), default=None)


def _raster(model: nn.Module, record: Mapping[str, Fired], ends: Sequence[Site]) -> tuple[int, int] | None:
    """(rows, columns) of the map that becomes the patch tokens, where a convolution cuts the patches of images."""
    from torch import nn

    lengths = {(record[end.module].output or (0, 0))[1] for end in ends}
    if len(lengths) > 1 or main_input(model) != "pixel_values":
        return None
    for path, module in model.named_modules():
        shape = record[path].output if isinstance(module, nn.Conv2d) else None
        if shape and len(shape) == 4 and 0 <= min(lengths) - math.prod(shape[2:]) <= MAX_PREFIX:
            return shape[2], shape[3]
    return None
