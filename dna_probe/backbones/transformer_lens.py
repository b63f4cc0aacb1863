"""TransformerLens both ways: its cache and hooks over any backbone, and its bridged models as backbones.

TransformerLens is imported inside the functions that need it, never when this module is.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dna_probe.backbones.discovery import TRIAL_BATCH, Fired, Layers, Sites
from dna_probe.errors import BackboneError, SiteError, one_line
from dna_probe.hooks import eager_attention, frozen
from dna_probe.sites import Site, resolve_site

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformer_lens import ActivationCache, HookedRootModule
    from transformer_lens.hook_points import HookPoint

    from dna_probe.backbones.contract import Backbone
    from dna_probe.batches import Reader

PREFIX = "tl:"
# Behind the name of a model of two modalities: its language blocks, not its tower for images.
LANGUAGE = "#language"

# Over any backbone


def as_hooked(backbone: Backbone) -> HookedRootModule:
    """A backbone as a ``transformer_lens.HookedRootModule`` whose hook points carry its site names.

    ``run_with_cache(batch)`` returns the model's output and an ``ActivationCache`` of own copies;
    ``run_with_hooks(batch, fwd_hooks=[(site, function)])``, ``hooks`` and ``add_hook`` work as they do there. The model
    is not part of the module and its tree is not changed: it carries hooks during a forward pass only, in evaluation
    mode and without parameter gradients. Gradients reach backward hooks where the batch requires them.

    Shapes are those of TransformerLens: the outputs of attention heads, ``hook_z``, are (n, tokens, heads, width of a
    head). Where a pattern is hooked or cached, fused attention is off, and the output rounds differently.

    Raises:
        SiteError: where it is run: a name that is no site, a filter that fits none, or a site that did not fire.
    """
    return _facade()(backbone)


def to_activation_cache(captured: Mapping[str, Tensor], backbone: Backbone) -> ActivationCache:
    """What ``backbone.capture`` returned as a ``transformer_lens.ActivationCache``, of the same tensors.

    The outputs of attention heads lose their flat shape: (n, tokens, heads, width of a head).

    Raises:
        SiteError: a name that is no site of the backbone.
    """
    from transformer_lens import ActivationCache

    sites = {name: resolve_site(name, backbone.sites) for name in captured}
    split = {
        name: tensor.unflatten(-1, (sites[name].heads, -1)) if sites[name].heads else tensor
        for name, tensor in captured.items()
    }
    return ActivationCache(split, as_hooked(backbone))


@cache
def _facade() -> type[HookedRootModule]:
    from transformer_lens import ActivationCache, HookedRootModule
    from transformer_lens.conversion_utils.conversion_steps import RearrangeTensorConversion
    from transformer_lens.hook_points import HookPoint

    class Facade(HookedRootModule):
        """Hook points named after the sites of a backbone, which is run behind them. See ``as_hooked``."""

        def __init__(self, backbone: Backbone):
            super().__init__()
            self.backbone, self.cfg = backbone, _config_of(backbone)
            for name, site in backbone.sites.items():
                point = HookPoint()
                if site.heads:
                    point.enable_reshape(RearrangeTensorConversion("n t (h d) -> n t h d", h=site.heads))
                _plant(self, name.split("."), point)
            self.setup()

        def forward(self, batch: Any) -> Any:
            """The model's output; every site whose point carries a hook passes through it."""
            visit = {name: _through(point) for name, point in self.hook_dict.items() if _is_hooked(point)}
            if visit:
                with self.backbone.visiting(visit, stop=False) as run:
                    return run(batch)
            with frozen(self.backbone.module):
                return self.backbone.module(self.backbone.cast(batch))

        def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *settings: Any, **named: Any) -> Any:
            self._require_sites(name for name, _ in (*fwd_hooks, *bwd_hooks))
            return super().hooks(list(fwd_hooks), list(bwd_hooks), *settings, **named)

        def add_hook(self, name: Any, *settings: Any, **named: Any) -> None:
            self._require_sites([name])
            super().add_hook(name, *settings, **named)

        def run_with_cache(self, *inputs: Any, remove_batch_dim: bool = False, **settings: Any) -> Any:
            """The output, and an ``ActivationCache`` of the sites that ``names_filter`` takes: all, if it is None."""
            output, cached = super().run_with_cache(*inputs, remove_batch_dim=remove_batch_dim, **settings)
            return output, ActivationCache(cached, self, has_batch_dim=not remove_batch_dim)

        def get_caching_hooks(self, names_filter: Any = None, *settings: Any, **named: Any) -> Any:
            wanted = self.hook_dict if names_filter is None else names_filter
            wanted = [wanted] if isinstance(wanted, str) or callable(wanted) else list(wanted)
            if not wanted:
                raise SiteError(
                    "No sites were asked for", fix=f"Name at least one, for example {next(iter(self.hook_dict))}"
                )
            self._require_sites(wanted)
            wanted = wanted[0] if callable(wanted[0]) else wanted
            cached, forward, backward = super().get_caching_hooks(wanted, *settings, **named)
            return cached, [(name, _of_a_copy(save)) for name, save in forward], backward

        def add_caching_hooks(self, *settings: Any, **named: Any) -> dict:
            cached, forward, backward = self.get_caching_hooks(*settings, **named)
            for direction, hooks in (("fwd", forward), ("bwd", backward)):
                for name, hook in hooks:
                    self.add_hook(name, hook, dir=direction)
            return cached

        def _require_sites(self, names: Iterable[str | Callable[[str], bool]]) -> None:
            """Raise ``SiteError`` for a name that is no site, and for a filter that takes none."""
            for name in names:
                if isinstance(name, str):
                    resolve_site(name, self.backbone.sites)
                elif not any(name(site) for site in self.backbone.sites):
                    raise SiteError("The filter takes no site", fix=f"Sites are named {self.backbone.layers[-1].name}")

    return Facade


def _plant(root: nn.Module, path: list[str], point: HookPoint) -> None:
    """Put a hook point at a dotted path; numbers are places in a ``ModuleList``."""
    from torch import nn

    at = root
    for part, below in itertools.pairwise(path):
        if part not in at._modules:
            at.add_module(part, nn.ModuleList() if below.isdigit() else nn.Module())
        at = at.get_submodule(part)
    at.add_module(path[-1], point)


def _is_hooked(point: HookPoint) -> bool:
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks)


def _through(point: HookPoint) -> Callable[[Tensor], Tensor | None]:
    def visit(activation: Tensor) -> Tensor | None:
        passed = point(activation)
        return None if passed is activation else passed

    return visit


def _of_a_copy(save: Callable) -> Callable:
    # TransformerLens keeps views, which the next module in place would overwrite.
    def hook(tensor: Tensor, hook: HookPoint) -> None:
        save(tensor.detach().clone(), hook=hook)

    return hook


def _config_of(backbone: Backbone) -> Any:
    """What the tools of TransformerLens ask for: depth, widths, heads."""
    from transformer_lens.config import TransformerLensConfig

    sites = backbone.sites.values()
    heads = next((site.heads for site in sites if site.heads), 1)
    width = backbone.layers[-1].width
    return TransformerLensConfig(
        d_model=width,
        d_head=width // heads,
        n_heads=heads,
        n_layers=backbone.depth,
        n_ctx=-1,
        d_mlp=next((site.width for site in sites if site.kind == "mlp"), None),
        device=str(backbone.device),
        dtype=backbone.dtype,
        default_prepend_bos=False,
    )


# Bridges as backbones


def is_bridge(model: Any) -> bool:
    """Whether this is a ``TransformerBridge``; does not import TransformerLens."""
    return any(base.__name__ == "TransformerBridge" for base in type(model).__mro__) and is_own(model)


def is_own(value: Any) -> bool:
    """Whether this is of a class of TransformerLens: a bridge, a part of one, a hook point."""
    return any(base.__module__.startswith("transformer_lens.") for base in type(value).__mro__)


def name_of(model: Any) -> str:
    """What a bridge calls its model, or the class name of that; of a part of one its class name."""
    if not is_bridge(model):
        return type(model).__name__
    name = str(getattr(model.cfg, "model_name", None) or "external")
    return type(inside(model, "text")).__name__ if name in ("external", "custom") else name


def inside(model: nn.Module, takes: str | None = None) -> nn.Module:
    """The module that is run of a bridge, hook points in its tree; any other module as it is.

    Args:
        model: a bridge; of a model of two modalities its tower for images is run, or all of it on texts alone. A
            head without weights is left out.
        takes: the modality of what it is given, if that is known.

    Raises:
        BackboneError: the model does not run in this process, its tower takes no plain images, or it is what
            ``as_hooked`` gave.
    """
    if type(model).__module__ == __name__:
        raise BackboneError("This is what as_hooked made of a backbone", "", "Give the backbone itself")
    if not is_bridge(model):
        return model
    vision = model._modules.get("vision_encoder")
    if vision is None or takes == "text":
        try:
            whole: Any = model.original_model
        except AttributeError as error:
            raise BackboneError(
                "This bridge cannot be probed", str(error), "Give one of a model that runs in this process"
            ) from error
        return whole.base_model if any(weight.is_meta for weight in whole.parameters()) else whole
    given = inspect.signature(vision.original_component.forward).parameters  # type: ignore[union-attr, operator]
    if any("grid" in name for name in given):
        raise BackboneError(
            f"The tower for images of {type(model.original_model).__name__} cannot be probed",
            f"It takes patches cut beforehand ({', '.join(list(given)[:2])}), not images",
            f"Probe its language blocks ({PREFIX}...{LANGUAGE}, or a TextPreprocessing with the bridge)",
        )
    return vision


def preprocessing_of(model: nn.Module) -> tuple[Reader, tuple[str, ...]]:
    """That of the bridge's tokeniser, or what ``huggingface.preprocessing_of`` finds for the model or tower inside.

    Raises:
        BackboneError: as ``inside`` and ``huggingface.preprocessing_of``, or it is no bridge nor a part of one.
    """
    from dna_probe.backbones import huggingface
    from dna_probe.texts.preprocessing import TextPreprocessing

    part: Any = inside(model)
    tokeniser: Any = model.tokenizer if is_bridge(model) else None
    if tokeniser is not None and not is_own(part):
        return TextPreprocessing(tokeniser), ()
    if is_own(part) and not hasattr(part, "original_component"):
        raise BackboneError(
            f"{type(model).__name__} does not say what it takes",
            "It is of TransformerLens and no bridge of a model of transformers",
            "Pass preprocessing=, for example TextPreprocessing(tokeniser), or open the model as tl:ID",
        )
    return huggingface.preprocessing_of(part.original_component if is_own(part) else part)


def tower(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A bridge or a part of one as it is, for what is run depends on what it is given (``inside``), and a note."""
    return model, () if is_bridge(model) else ("of a model for images and texts the tower for images is probed",)


_RESIDUAL = ("hook_resid_post", "hook_out")
# What the hook points of a block are called: the name of TransformerLens, then the point it is an alias of in a bridge.
_POINTS: dict[Literal["mlp", "heads", "pattern"], tuple[str, ...]] = {
    "mlp": ("mlp.hook_post", "mlp.out.hook_in"),
    "heads": ("attn.hook_z", "attn.o.hook_in"),
    "pattern": ("attn.hook_pattern",),
}


@dataclass(frozen=True)
class HookPoints:
    """Where the hook points of TransformerLens lie in a model: their names -> paths of ``named_modules``."""

    paths: Mapping[str, str]

    def find_layers(self, model: nn.Module, record: Mapping[str, Fired]) -> Layers:
        """The longest stack whose hook points for the residual stream fired; raises ``BackboneError`` without any."""
        stacks: dict[str, dict[int, str]] = {}
        for suffix in reversed(_RESIDUAL):
            for name, path in self.paths.items():
                place = re.fullmatch(rf"(.+)\.(\d+)\.{suffix}", name)
                if place and len(record[path].output or ()) == 3:
                    stacks.setdefault(place[1], {})[int(place[2])] = path
        if not stacks:
            raise BackboneError(
                f"No hook point for the residual stream fired in {type(model).__name__}",
                f"None of its points is called blocks.0.{' or blocks.0.'.join(_RESIDUAL)}",
                "Open the model without TransformerLens (hf:...)",
            )
        longest = max(stacks.values(), key=len)
        return Layers("residual", tuple(longest[layer] for layer in sorted(longest)))

    def declare(self, found: Sites, record: Mapping[str, Fired], preprocessing: Reader) -> Sites:
        """The layers found, with the hook points of their MLPs, heads and patterns."""
        names = {path: name for name, path in self.paths.items()}
        sites = [site for site in found.sites.values() if site.kind == "residual"]
        for end in list(sites):
            block = names[end.module].rpartition(".")[0]
            points = {kind: self._point(block, suffixes, record) for kind, suffixes in _POINTS.items()}
            sites += _inside(end, points, record, raster=found.grid is not None)
        sites.sort(key=lambda site: record[site.module].output_at)
        return replace(found, sites={site.name: site for site in sites})

    def _point(self, block: str, suffixes: Iterable[str], record: Mapping[str, Fired]) -> str:
        paths = (self.paths.get(f"{block}.{suffix}", "") for suffix in suffixes)
        return next((path for path in paths if path and record[path].output), "")


def _inside(end: Site, points: Mapping[Any, str], record: Mapping[str, Fired], raster: bool) -> list[Site]:
    """The sites of a block at these hook points, where they have the shapes of such units over all its tokens."""
    over, block = (record[end.module].output or ())[:2], f"blocks.{end.layer}"
    shapes = {kind: record[path].output or () if path else () for kind, path in points.items()}
    made: list[Site] = []
    hidden, joined, pattern = shapes["mlp"], shapes["heads"], shapes["pattern"]
    if len(hidden) == 3 and hidden[:2] == over:
        made.append(replace(end, name=f"{block}.mlp.hook_post", kind="mlp", module=points["mlp"], width=hidden[2]))
    if len(pattern) != 4 or pattern[0] != TRIAL_BATCH or not pattern[2] == pattern[3] == over[1]:
        return made
    if raster:
        named: Any = {"name": f"{block}.attn.hook_pattern", "kind": "pattern"}
        shown = replace(end, **named, module=points["pattern"], width=pattern[1])
        if joined and record[shown.module].output_at > record[points["heads"]].output_at:
            # Behind the heads it is shown after use. Read beside the output of its attention, it cannot be edited.
            shown = replace(shown, module=shown.module.rpartition(".")[0], part=1)
        made.append(shown)
    if len(joined) == 3 and joined[:2] == over and joined[2] % pattern[1] == 0:
        named = {"name": f"{block}.attn.hook_z", "kind": "heads"}
        made.append(replace(end, **named, module=points["heads"], width=joined[2], heads=pattern[1]))
    return made


def family_of(module: nn.Module) -> HookPoints | None:
    """The hook points of TransformerLens in a module; None without any. Does not import TransformerLens."""
    points = {
        str(part.name): path
        for path, part in module.named_modules()
        if type(part).__name__ == "HookPoint" and is_own(part) and part.name
    }
    return HookPoints(points) if points else None


# Opening by name


def build(name: str, weights: Any = None, random_weights: bool = False) -> tuple[nn.Module, str]:
    """The model that ``tl:<id>``, ``tl:<folder>`` or either with ``#language`` names, hook points in its tree.

    It is that of ``hf:`` under the same name, with the same weights, bridged.

    Returns:
        What is probed of it, and the name that opens it again.

    Raises:
        BackboneError: as ``huggingface.build``; TransformerLens has no adapter for it; or its tower takes no images.
    """
    from dna_probe.backbones import huggingface

    place, language, _ = name.removeprefix(PREFIX).partition(LANGUAGE)
    model, spec = huggingface.build(f"hf:{place}", weights, random_weights)
    part: Any = inside(bridge(model), "text" if language else None)
    if is_own(part):
        # A tower does not know by itself where its image processor lies.
        configured: Any = model.config
        part.original_component.config._name_or_path = configured._name_or_path
    return part.eval(), f"{PREFIX}{spec.removeprefix('hf:')}{language}"


def bridge(model: nn.Module) -> Any:
    """A ``TransformerBridge`` around a model of transformers, whose modules it replaces in place; no network is used.

    Bare models that TransformerLens knows only with a head (``BertModel``) are bridged inside one without memory.

    Raises:
        BackboneError: TransformerLens has no adapter for the model, or its adapter fails.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    ArchitectureAdapterFactory.discover_entry_points()
    register_adapters()
    kind = type(model).__name__
    whole = model if kind in ArchitectureAdapterFactory._adapters else _with_head(model, ArchitectureAdapterFactory)
    if whole is None:
        raise _unbridged(kind, "It has no adapter for this architecture")
    try:
        # Some adapters switch fused attention off for good.
        with eager_attention(model):
            return build_bridge_from_module(whole, type(whole).__name__, hf_config=whole.config)
    except Exception as error:
        raise _unbridged(kind, one_line(error)) from error


def _with_head(model: nn.Module, factory: Any) -> nn.Module | None:
    """A bare model inside the first class with a head that there is an adapter for; the head's weights take no room."""
    import torch
    import transformers

    config: Any = model.config
    stem = type(config).__name__.removesuffix("Config")
    for name in factory._adapters:
        head = getattr(transformers, name, None) if name.startswith(stem) else None
        if head is not None and getattr(head, "config_class", None) is type(config):
            with torch.device("meta"):
                whole = head(config)
            if isinstance(getattr(whole, head.base_model_prefix, None), type(model)):
                setattr(whole, head.base_model_prefix, model)
                # A bridge takes over the mode of the outermost module.
                return whole.train(model.training)
    return None


def _unbridged(kind: str, why: str) -> BackboneError:
    from importlib.metadata import version

    return BackboneError(
        f"TransformerLens {version('transformer-lens')} cannot bridge {kind}",
        why,
        "Open it without TransformerLens (hf:...), which needs no adapter",
    )


def register_adapters() -> None:
    """Make DINOv2, with registers or without, known to TransformerLens, unless it knows it by now."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

    for family in ("Dinov2", "Dinov2WithRegisters"):
        for name in (f"{family}Model", f"{family}ForImageClassification"):
            if name not in ArchitectureAdapterFactory._adapters:
                ArchitectureAdapterFactory.register_adapter(name, _dinov2_adapter())


@cache
def _dinov2_adapter() -> Any:
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.generalized_components import (
        AttentionBridge,
        BlockBridge,
        LinearBridge,
        MLPBridge,
        NormalizationBridge,
    )
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    class Dinov2Adapter(ArchitectureAdapter):
        supports_generation = False

        def __init__(self, cfg: Any):
            super().__init__(cfg)
            cfg.is_visual_model, cfg.normalization_type, cfg.final_rms = True, "LN", False

        def prepare_model(self, model: Any) -> None:
            inner = "" if model.base_model is model else f"{model.base_model_prefix}."
            gated = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
            hidden = gated if model.config.use_swiglu_ffn else {"in": "fc1", "out": "fc2"}

            def linear(names: Mapping[str, str]) -> dict:
                return {part: LinearBridge(name=name) for part, name in names.items()}

            def norm(name: str) -> Any:
                return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)

            heads = linear({part: f"{part}_proj" for part in "qkvo"})
            inside = {
                "ln1": norm("norm1"),
                "attn": AttentionBridge(name="attention", config=self.cfg, submodules=heads),
                "ln2": norm("norm2"),
                "mlp": MLPBridge(name="mlp", config=self.cfg, submodules=linear(hidden)),
            }
            self.component_mapping = {
                "embed": GeneralizedComponent(name=f"{inner}embeddings"),
                "blocks": BlockBridge(name=f"{inner}encoder.layer", submodules=inside),
                "ln_final": norm(f"{inner}layernorm"),
            }

    return Dinov2Adapter
