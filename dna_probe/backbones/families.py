"""Architectures that say themselves where their units are, where looking at what fires is not enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from dna_probe.backbones.discovery import Fired, Layers, Sites, grid_of
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.sites import Site

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.batches import Reader


_SHAPES = {
    "mlp": "(n, tokens, width)",
    "heads": "(n, tokens, width), and num_heads that divide the width",
    "pattern": "(n, heads, queries, keys)",
}


@dataclass(frozen=True)
class Family:
    """Where the layers and units of an architecture are. What is left out is found by what fires.

    Paths are those of ``named_modules``. Inside a layer they are relative to it and end in ``.input`` or ``.output``,
    for what the module is given or what it returns.

    Attributes:
        model: name of the class, or a function that says whether a module is of the family.
        layers: glob over the paths of the layers, ``trunk.*``; they are taken in the order in which they fire.
        kind: ``residual`` for blocks that keep a residual stream, ``stage`` for others.
        mlp: the hidden units of a layer's MLP, for example ``down.input``.
        heads: the outputs of its attention heads side by side, ``mix.project.input``, and ``num_heads`` how many.
        pattern: its attention probabilities (n, heads, queries, keys), ``mix.softmax.output``.
        prefix_tokens: tokens before the patches; ``class_token`` says whether the first of them is a class token.
    """

    model: str | Callable[[nn.Module], bool]
    layers: str
    kind: Literal["residual", "stage"] = "residual"
    mlp: str = ""
    heads: str = ""
    num_heads: int = 0
    pattern: str = ""
    prefix_tokens: int | None = None
    class_token: bool | None = None

    def matches(self, module: nn.Module) -> bool:
        return type(module).__name__ == self.model if isinstance(self.model, str) else self.model(module)

    def find_layers(self, module: nn.Module, record: Mapping[str, Fired]) -> Layers:
        """Raises ``BackboneError`` where the glob names no module that fired."""
        deep = self.layers.count(".")
        paths = [path for path in record if fnmatchcase(path, self.layers) and path.count(".") == deep]
        paths = [path for path in paths if record[path].calls]
        if not paths:
            raise BackboneError(
                f"No layer of {type(module).__name__} is called {self.layers!r}",
                "Its family names the layers so, and no such module ran",
                "Compare with the names in model.named_modules()",
            )
        return Layers(self.kind, tuple(paths))

    def declare(self, found: Sites, record: Mapping[str, Fired], preprocessing: Reader) -> Sites:
        """The sites found, with those that the family names in place of those told by what fired."""
        sites = {name: self._with_prefix(site) for name, site in found.sites.items()}
        for end in [site for site in sites.values() if site.kind in ("residual", "stage")]:
            for site in self._inside(end, record):
                sites[site.name] = site
        ordered = sorted(sites.values(), key=lambda site: _fires(site, record))
        grid, tokens = found.grid, next((s for s in ordered if s.layout == "tokens" and s.kind == "residual"), None)
        if self.prefix_tokens is not None and tokens and isinstance(preprocessing, Preprocessing):
            length = (record[tokens.module].output or (0, 0))[1]
            grid = grid_of(length - self.prefix_tokens, preprocessing.input_size)
        prefix = max((site.prefix_tokens for site in ordered), default=0)
        return replace(found, sites={s.name: s for s in ordered}, num_prefix_tokens=prefix, grid=grid)

    def _with_prefix(self, site: Site) -> Site:
        if site.layout != "tokens":
            return site
        count = site.prefix_tokens if self.prefix_tokens is None else self.prefix_tokens
        named = site.class_token if self.class_token is None else self.class_token
        return replace(site, prefix_tokens=count, class_token=named and count > 0)

    def _inside(self, end: Site, record: Mapping[str, Fired]) -> list[Site]:
        made = []
        named: tuple[tuple[str, Literal["mlp", "heads", "pattern"], str], ...] = (
            (self.mlp, "mlp", "mlp.hook_post"),
            (self.heads, "heads", "attn.hook_z"),
            (self.pattern, "pattern", "attn.hook_pattern"),
        )
        for place, kind, name in named:
            if not place:
                continue
            path, _, word = place.rpartition(".")
            side: Literal["input", "output"] = "input" if word == "input" else "output"
            module = f"{end.module}.{path}"
            fired = record.get(module)
            if word not in ("input", "output") or fired is None or not fired.calls:
                raise BackboneError(
                    f"{place!r} is no {kind} site of {end.module}",
                    "Inside a layer a path ends in .input or .output, and its module must run",
                    "Compare with the names in model.named_modules()",
                )
            shape = (fired.input if side == "input" else fired.output) or ()
            heads = self.num_heads if kind == "heads" else 0
            if len(shape) != (4 if kind == "pattern" else 3) or (kind == "heads" and (heads < 1 or shape[-1] % heads)):
                raise BackboneError(
                    f"{place!r} of {end.module} cannot be its {kind}",
                    f"It has the shape {shape}{f', and num_heads is {heads}' if kind == 'heads' else ''}",
                    f"Name what has the shape {_SHAPES[kind]}",
                )
            width, part = shape[1] if kind == "pattern" else shape[-1], fired.part if side == "output" else 0
            prefix = (end.prefix_tokens, end.class_token)
            made.append(
                Site(f"blocks.{end.layer}.{name}", kind, end.layer, module, side, "tokens", width, *prefix, heads, part)
            )
        return made


def _fires(site: Site, record: Mapping[str, Fired]) -> int:
    fired = record[site.module]
    return fired.input_at if site.side == "input" else fired.output_at


_REGISTERED: list[Family] = []


def register_family(family: Family) -> None:
    """Open every model of this family by what it says of itself from now on; the last one registered counts."""
    _REGISTERED.insert(0, family)


def family_of(module: nn.Module) -> Family | None:
    return next((family for family in _REGISTERED if family.matches(module)), None)
