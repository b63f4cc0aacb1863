"""Every residual and MLP site captured, and reduced to statistics, by dna_probe and by the tools that do the same."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from activation_cache import copied, hooked
from collection import paired
from speed.measuring import Block, Peak, apart, peak_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.backbones.transformer_lens import as_hooked, bridge
from dna_probe.collection import Options, collect_moments
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sets import ImageSet
from dna_probe.moments import ClassMoments
from dna_probe.sites import Reading, Site

# In front of a timm name: the model of transformers that has its size.
TRANSFORMERS = "transformers:"
TINY = "test_vit"
WHAT = "all residual and MLP sites"
PATTERN = "blocks.0.attn.hook_pattern"
Run = Callable[[Tensor], Any]
# Opens a backbone for some sites, and gives what runs a batch.
Way = Callable[[Backbone, Sequence[str]], Run]


class Unfit(Exception):
    """The tool does not do that, by its own account."""


class Ready(Preprocessing):
    """Samples that are pixels already, so that what is timed is not their reading."""

    def load(self, source: Any, name: str = "") -> np.ndarray:
        return source


def opened(model: str) -> Backbone:
    """A backbone with random weights that takes pixels, by its timm name, with ``TRANSFORMERS`` in front or without."""
    backbone = open_backbone(model.removeprefix(TRANSFORMERS), random_weights=True, device="cpu")
    module: Any = same_size(backbone.module) if model.startswith(TRANSFORMERS) else backbone.module
    return Backbone(module, Ready(backbone.preprocessing.input_size), model)


def same_size(module: Any) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    block = module.blocks[0]
    config = ViTConfig(
        hidden_size=module.embed_dim,
        num_hidden_layers=len(module.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        image_size=module.patch_embed.img_size[0],
        patch_size=module.patch_embed.patch_size[0],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ViTModel(config, add_pooling_layer=False).eval()


def pixels_for(backbone: Backbone, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *backbone.preprocessing.input_size, generator=generator)


def all_sites(backbone: Backbone) -> list[str]:
    return [site.name for site in backbone.sites.values() if site.kind in ("residual", "mlp")]


def bare(backbone: Backbone, names: Sequence[str]) -> Run:
    def run(pixels: Tensor) -> None:
        with torch.inference_mode():
            backbone.module(pixels)

    return run


# Tools: each opens a backbone for some sites, and gives what runs a batch and returns site -> activation.


def dna_probe_capture(backbone: Backbone, names: Sequence[str]) -> Run:
    return lambda pixels: backbone.capture(pixels, names, stop=False)


def hooks_keeping(keep: Callable[[Tensor], Tensor]) -> Way:
    def open_hooks(backbone: Backbone, names: Sequence[str]) -> Run:
        def run(pixels: Tensor) -> dict[str, Tensor]:
            with torch.inference_mode(), hooked(backbone, list(names), keep) as kept:
                backbone.module(pixels)
            return kept

        return run

    return open_hooks


def forward_intermediates(backbone: Backbone, names: Sequence[str]) -> Run:
    if not hasattr(backbone.module, "forward_intermediates"):
        raise Unfit("cannot open it")
    if any(backbone.sites[name].kind == "pattern" for name in names):
        raise Unfit("cannot: ends of blocks only")
    layers = {name: backbone.sites[name].layer for name in names if backbone.sites[name].kind == "residual"}

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            parts = backbone.module.forward_intermediates(
                pixels,
                indices=list(layers.values()),
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            # It gives the class token and the patches apart; the other tools give them together.
            whole = [torch.cat((prefix, patches), 1) for patches, prefix in parts]
        return dict(zip(layers, whole, strict=True))

    return run


def torchvision_extractor(backbone: Backbone, names: Sequence[str]) -> Run:
    from torchvision.models.feature_extraction import create_feature_extractor

    return run_extractor(create_feature_extractor, backbone, names)


def timm_extractor(backbone: Backbone, names: Sequence[str]) -> Run:
    """torchvision's, told by timm which of its modules and functions are not to be traced."""
    from timm.models import create_feature_extractor

    return run_extractor(create_feature_extractor, backbone, names)


def run_extractor(create: Callable, backbone: Backbone, names: Sequence[str]) -> Run:
    extractor = create(backbone.module, {place_of(backbone.sites[name]): name for name in names})

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return extractor(pixels)

    return run


def captum_activation(backbone: Backbone, names: Sequence[str]) -> Run:
    from captum.attr import LayerActivation

    modules = [backbone.module.get_submodule(place_of(backbone.sites[name])) for name in names]
    activation = LayerActivation(backbone.module, modules)

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return dict(zip(names, activation.attribute(pixels), strict=True))

    return run


def nnsight_trace(backbone: Backbone, names: Sequence[str]) -> Run:
    from nnsight import NNsight

    model = NNsight(backbone.module)
    places = {name: place_of(backbone.sites[name]) for name in names}

    def run(pixels: Tensor) -> dict[str, Tensor]:
        kept = {}
        with torch.inference_mode(), model.trace(pixels):
            for name, place in places.items():
                kept[name] = model.get(place).output.save()
        return kept

    return run


def facade(backbone: Backbone, names: Sequence[str]) -> Run:
    hooked_model = as_hooked(backbone)

    def run(pixels: Tensor) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            return hooked_model.run_with_cache(pixels, names_filter=list(names))[1]

    return run


def bridged(backbone: Backbone, names: Sequence[str]) -> Run:
    # Replaces modules of the model in place: what was opened is not a plain backbone any more.
    model = bridge(backbone.module)

    def run(pixels: Tensor) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            return model.run_with_cache(pixels, names_filter=list(names))[1]

    return run


def place_of(site: Site) -> str:
    """The module whose output the activation is: before ``fc2`` the activation function; dropout passes all on."""
    parent, _, last = site.module.rpartition(".")
    return f"{parent}.act" if last == "fc2" else site.module


@dataclass(frozen=True)
class Tool:
    """How a tool captures; ``transformers``: it is measured on the model of transformers, too, or only there."""

    open: Way
    transformers: str = "no"


OURS, RAW = "dna_probe `collect_moments`", "raw hooks that clone"
FLOOR = "raw hooks that reduce into one table, for this model"
TOOLS = {
    "dna_probe `Backbone.capture`": Tool(dna_probe_capture, "too"),
    RAW: Tool(hooks_keeping(copied), "too"),
    "raw hooks that detach, no clone": Tool(hooks_keeping(Tensor.detach)),
    "timm `forward_intermediates`, residual sites only": Tool(forward_intermediates),
    "torchvision `create_feature_extractor`": Tool(torchvision_extractor),
    "the same with timm's list of what not to trace": Tool(timm_extractor),
    "captum `LayerActivation`, all layers in a list": Tool(captum_activation),
    "nnsight `trace`": Tool(nnsight_trace),
    "TransformerLens cache over dna_probe's facade": Tool(facade, "too"),
    "TransformerLens cache of its bridge": Tool(bridged, "only"),
}


def tools_for(model: str) -> dict[str, Tool]:
    fitting = ("too", "only") if model.startswith(TRANSFORMERS) else ("no", "too")
    return {name: tool for name, tool in TOOLS.items() if tool.transformers in fitting}


# Statistics: mean and variance of every unit in two classes, (2, classes, units), of the same readings for all.


def readings_of(backbone: Backbone, names: Sequence[str]) -> list[Reading]:
    return [Reading(backbone.sites[name], backbone.sites[name].default_reduction) for name in names]


def tabled(parts: Sequence[ClassMoments]) -> np.ndarray:
    return np.stack(
        [
            [np.concatenate([part.classes[label].mean for part in parts]) for label in (0, 1)],
            [np.concatenate([part.classes[label].variance for part in parts]) for label in (0, 1)],
        ]
    )


def labels_for(pixels: Tensor) -> np.ndarray:
    return np.arange(len(pixels)) % 2


def collected(backbone: Backbone, names: Sequence[str], **how: Any) -> Run:
    """dna_probe's, all of it: hooks on and off again, batches stacked, values checked; ``how``: fields of `Options`."""
    readings = readings_of(backbone, names)

    def run(pixels: Tensor) -> np.ndarray:
        images = ImageSet(tuple(pixels.numpy()), labels_for(pixels))
        found = collect_moments(backbone, images, readings, Options(batch_size=len(pixels), **how))
        return tabled([found[reading.name] for reading in readings])

    return run


def summed_up(tool: Tool) -> Way:
    """The same from what a tool captured."""

    def open_tool(backbone: Backbone, names: Sequence[str]) -> Run:
        readings, capture = readings_of(backbone, names), tool.open(backbone, names)

        def run(pixels: Tensor) -> np.ndarray:
            kept = capture(pixels)
            return moments_of([r.reduce(kept[r.site.name]) for r in readings if r.site.name in kept], pixels)

        return run

    return open_tool


def reduced_by_hand(backbone: Backbone, names: Sequence[str]) -> Run:
    """What a user would write who knows that memory matters, and one model: the floor for any tool.

    Into one table: small tensors made between the large ones of a forward would keep their room from being used again.
    """
    widths = [backbone.sites[name].width for name in names]

    def run(pixels: Tensor) -> np.ndarray:
        table = torch.empty(len(pixels), sum(widths))
        # Sites are named in the order in which they fire.
        columns = iter(table.split(widths, 1))
        with torch.inference_mode(), hooked(backbone, list(names), lambda seen: next(columns).copy_(seen[:, 0])):
            backbone.module(pixels)
        return moments_of([table], pixels)

    return run


def moments_of(values: Sequence[Tensor], pixels: Tensor) -> np.ndarray:
    moments = ClassMoments(sum(value.shape[1] for value in values))
    moments.update(torch.cat(list(values), 1).numpy(), labels_for(pixels))
    return tabled([moments])


def statistics_for(model: str) -> dict[str, Way]:
    own = {OURS: collected, FLOOR: reduced_by_hand}
    return {**own, **{name: summed_up(tool) for name, tool in tools_for(model).items()}}


# What is measured


def peers(models: Sequence[str], batch: int, rounds: int) -> Iterator[Block]:
    """For each model, and the model of transformers of the first one's size: captures, and statistics, of all sites."""
    checked = {name: checks(name) for name in TOOLS}
    overwritten = {
        name: {"next module in place": told(partial(in_place, way, TOOLS.get(name)))}
        for name, way in statistics_for("").items()
    }
    for model in [*models, TRANSFORMERS + models[0]]:
        captures = {name: tool.open for name, tool in tools_for(model).items()}
        shown_as = model.replace(TRANSFORMERS, "transformers ViTModel of the size of ")
        rows = compared(model, "capture", captures, RAW, batch, rounds)
        if model in models:
            rows = [{**row, **checked.get(row[WHAT], {})} for row in rows]
        yield Block(f"Captured: {shown_as}, batch {batch}", rows)
        statistics = compared(model, "statistics", statistics_for(model), RAW, batch, rounds)
        if model in models:
            statistics = [{**row, **overwritten.get(row[WHAT], {})} for row in statistics]
        yield Block(f"Statistics of every unit in two classes: {shown_as}, batch {batch}", statistics)


def compared(
    model: str, kind: str, ways: Mapping[str, Callable], reference: str, batch: int, rounds: int
) -> list[dict[str, Any]]:
    """One row for each way: time and peak memory over the bare forward, and how far it is from the reference."""
    plain = opened(model)
    pixels, names = pixels_for(plain, batch), all_sites(plain)
    expected = ways[reference](plain, names)(pixels)
    base, base_peak = bare(plain, names), apart(peak_memory, model, "bare", "", batch)
    rows = []
    for name, way in ways.items():
        row: dict[str, Any] = {WHAT: name}
        try:
            # A model of its own: some tools leave wrappers on it.
            run = way(opened(model), names)
            result = run(pixels)
        except Exception as error:
            row |= {"time / bare": failure(error), "peak / bare": None, "peak, MB": None, "largest difference": None}
        else:
            same = agreement(result, expected)
            del result
            peak = apart(peak_memory, model, kind, name, batch)
            row |= {
                "time / bare": paired(lambda: base(pixels), lambda run=run: run(pixels), rounds),
                "peak / bare": peak.over(base_peak),
                "peak, MB": peak.above,
                "largest difference": same,
            }
        rows.append(row)
    return [*rows, {**dict.fromkeys(rows[0]), WHAT: "bare forward", "peak, MB": base_peak.above}]


def peak_memory(model: str, kind: str, name: str, batch: int, last: int = 0) -> Peak:
    """Of one way over all sites, or the ``last`` ones, with model, tool and pixels resident before."""
    backbone = opened(model)
    pixels, names = pixels_for(backbone, batch), all_sites(backbone)[-last:]
    way = bare
    if kind != "bare":
        way = TOOLS[name].open if kind == "capture" else statistics_for(model)[name]
    run = way(backbone, names)
    return peak_of(lambda: run(pixels))


def agreement(result: Any, expected: Any) -> str:
    """The largest difference to the reference, and over how much, where that is not all."""
    if isinstance(expected, np.ndarray):
        if result.shape != expected.shape:
            return f"other units: {result.shape[-1]} of {expected.shape[-1]}"
        return f"{np.abs(result - expected).max():.0g}"
    worst = max(float((result[name] - tensor).abs().max()) for name, tensor in expected.items() if name in result)
    count = sum(name in result for name in expected)
    return f"{worst:.0g}" + (f" ({count} of {len(expected)} sites)" if count < len(expected) else "")


def failure(error: Exception) -> str:
    """The error as one short line; nnsight puts a traceback in front of its message."""
    if isinstance(error, Unfit):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = next((line for line in reversed(lines) if "Error:" in line), f"{type(error).__name__}: {lines[0]}")
    return textwrap.shorten(text, 110, placeholder=" ...")


# What a tool does that time and memory do not show


def checks(name: str) -> dict[str, str]:
    """Whether values are right under in-place modules, fused attention is left on, and patterns are found under it."""
    tool = TOOLS[name]
    return {
        "next module in place": told(partial(in_place, tool.open, tool)),
        "fused attention on": told(partial(fused, tool)),
        "asked for a pattern": told(partial(pattern, tool)),
    }


def told(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return failure(error)


class PreActivated(nn.Module):
    """A block that begins with an activation in place, as those of pre-activation networks do."""

    def __init__(self, width: int):
        super().__init__()
        self.relu, self.mix = nn.ReLU(inplace=True), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(self.relu(tokens))


class Overwriting(nn.Module):
    """A model whose every block overwrites the output of the block before."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, width = 32, 8
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(PreActivated(width) for _ in range(3))
        self.head = nn.Linear(width, 2)

    def tokens(self, pixels: Tensor) -> Tensor:
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), 1)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.tokens(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def in_place(way: Way, tool: Tool | None = None) -> str:
    """Is the output of a block as the block gave it, or as the next one left it? Of a capture, or of statistics."""
    if tool is not None and tool.transformers == "only":
        raise Unfit("cannot open it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Overwriting().eval()
    backbone = Backbone(model, Ready((32, 32)))
    names, pixels = [site.name for site in backbone.layers], pixels_for(backbone, 4)
    with torch.inference_mode():
        right = model.blocks[0](model.tokens(pixels)).clone()
    found = way(backbone, names)(pixels)
    if isinstance(found, np.ndarray):
        width = right.shape[-1]
        found, right = (torch.from_numpy(values) for values in (found[..., :width], moments_of([right[:, 0]], pixels)))
        wrong = "wrong: overwritten"
    else:
        found = found[names[0]]
        wrong = "wrong: overwritten" if torch.allclose(found, right.relu(), atol=1e-6) else "wrong"
    return "right" if torch.allclose(found, right, atol=1e-6) else wrong


class Fused(TorchDispatchMode):
    """Counts calls of fused attention, whoever makes them."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


def checked_model(tool: Tool) -> Backbone:
    return opened((TRANSFORMERS if tool.transformers == "only" else "") + TINY)


def fused(tool: Tool) -> str:
    backbone = checked_model(tool)
    pixels = pixels_for(backbone, 2)
    run = tool.open(backbone, all_sites(backbone))
    with Fused() as calls:
        run(pixels)
    return "yes" if calls.count == backbone.depth else f"no: in {calls.count} of {backbone.depth} layers"


def pattern(tool: Tool) -> str:
    """Attention probabilities, which fused attention never makes."""
    backbone = checked_model(tool)
    pixels = pixels_for(backbone, 2)
    right = backbone.capture(pixels, [PATTERN])[PATTERN]
    kept = tool.open(backbone, [PATTERN])(pixels)
    if PATTERN not in kept:
        return "nothing, silently"
    return "right" if torch.allclose(kept[PATTERN], right, atol=1e-5) else "wrong"
