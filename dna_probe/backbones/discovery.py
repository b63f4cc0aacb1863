"""Find a model's sites by watching one forward pass of a trial image, not by trusting its source code.

A family module (``timm``, ``plain``) proposes which modules are the layers. What fired, when, and with which shape
decides the rest, helped by usual names: layout, width, the MLP, head and attention sites inside a block, prefix tokens,
firing order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dna_probe.attention import BINS
from dna_probe.errors import BackboneError, SiteError, one_line
from dna_probe.hooks import eager_attention, frozen, nth_tensor
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.sites import Layout, Site

if TYPE_CHECKING:
    from torch import nn

    from dna_probe.batches import Reader

# Two images: with one, a batch axis could not be told from a single window or from a token axis that comes first.
TRIAL_BATCH = 2
MAX_PREFIX = 8
CLASS_TOKEN_NAMES = ("cls_token", "class_token", "class_embedding", "cls")
_MLP_NAMES = ("mlp", "ffn", "feed_forward", "mlp_channels", "mlp_out_proj")

Shape = tuple[int, ...]
# What to do where a model does not take what it is given.
WRAP = {
    "image": "Pass preprocessing=Preprocessing(input_size=(height, width)) with the size that it takes, "
    "or wrap it so that forward takes RGB images (n, 3, height, width)",
    "text": "Wrap it so that forward takes token numbers (n, length), or give the tokeniser that it was trained with",
    "audio": "Wrap it so that forward takes what its feature extractor gives",
}


@dataclass
class Fired:
    """What one module did in the trial forward; ``at`` counts events over the whole forward.

    ``output`` is that of the first tensor returned whose first axis is the batch, number ``part`` of those returned; if
    there is none, of the first one. ``given`` and ``made`` number the tensors of ``input`` and ``output``: where they
    are equal it is the very same tensor.
    """

    calls: int = 0
    output: Shape | None = None
    output_at: int = 0
    part: int = 0
    input: Shape | None = None
    input_at: int = 0
    lowest_input: float = 0.0
    given: int = 0
    made: int = -1


@dataclass(frozen=True)
class Layers:
    """The modules that make up the depth axis: ``residual`` for blocks that keep a residual stream, else ``stage``."""

    kind: Literal["residual", "stage"]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Sites:
    """What discovery found; ``sites`` is in the order in which they fire."""

    sites: Mapping[str, Site]
    num_prefix_tokens: int
    grid: tuple[int, int] | None
    notes: tuple[str, ...] = field(default=())


def watch(model: nn.Module, preprocessing: Reader) -> dict[str, Fired]:
    """Run the model once on made-up samples and note what every module was given and returned.

    Raises:
        BackboneError: the model cannot run on what its preprocessing gives.
    """
    import torch
    from torch.utils.weak import WeakIdKeyDictionary

    record = {name: Fired() for name, _ in model.named_modules()}
    numbers = WeakIdKeyDictionary()
    events = 0

    def shape_of(value: Any, part: int = 0) -> Shape | None:
        try:
            tensor = nth_tensor(value, part)
        except SiteError:
            return None
        return tuple(tensor.shape) if tensor.is_floating_point() else None

    def number_of(value: Any, part: int = 0) -> int:
        return numbers.setdefault(nth_tensor(value, part), events)

    def part_of(value: Any) -> int:
        shapes = (shape_of(value, part) for part in range(len(value) if isinstance(value, tuple | list) else 1))
        return next((part for part, shape in enumerate(shapes) if shape and shape[0] == TRIAL_BATCH), 0)

    def before(name: str) -> Callable:
        def hook(module, args, kwargs):
            nonlocal events
            events += 1
            entry = record[name]
            entry.calls += 1
            if entry.calls == 1:
                given = args or tuple(kwargs.values())
                entry.input, entry.input_at = shape_of(given), events
                entry.given = number_of(given) if entry.input else 0
                if entry.input and len(entry.input) == 4 and name.endswith("attn_drop"):
                    entry.lowest_input = float(nth_tensor(given, 0).min())

        return hook

    def after(name: str) -> Callable:
        def hook(module, args, output):
            nonlocal events
            events += 1
            entry = record[name]
            if entry.calls == 1:
                entry.part = part_of(output)
                entry.output, entry.output_at = shape_of(output, entry.part), events
                entry.made = number_of(output, entry.part) if entry.output else -1

        return hook

    weights = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    trial = torch.from_numpy(preprocessing.trial(TRIAL_BATCH)).to(weights.device)
    trial = trial.to(weights.dtype) if trial.is_floating_point() else trial
    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
        with torch.inference_mode(), frozen(model), eager_attention(model):
            model(trial)
    except Exception as error:
        raise BackboneError(
            f"{type(model).__name__} could not run on a trial batch of {' x '.join(map(str, trial.shape))}",
            one_line(error),
            WRAP[preprocessing.modality],
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return record


def find_sites(model: nn.Module, layers: Layers, record: Mapping[str, Fired], preprocessing: Reader) -> Sites:
    """Sites of the layers proposed, those that did not fire left out.

    Raises:
        BackboneError: none of the layers gave a float activation whose first axis is the batch.
    """
    paths = sorted((p for p in layers.paths if _usable(record.get(p))), key=lambda p: record[p].output_at)
    if not paths:
        raise no_layers(model)
    size = preprocessing.input_size if isinstance(preprocessing, Preprocessing) else None
    channels_last = size is not None and _channels_last(model, [record[p].output for p in paths], size)
    prefix = PrefixRule.of(model, size) if size else PrefixRule.of_sequence(model, preprocessing)
    found: list[tuple[int, Site]] = []
    for k, path in enumerate(paths):
        shape = record[path].output or ()
        layout = "nchw" if is_channels_first(model, shape, record) else _layout(shape, channels_last)
        count = prefix.count(shape[1]) if layout == "tokens" else 0
        is_class = prefix.class_token and count > 0
        name = f"blocks.{k}.hook_resid_post" if layers.kind == "residual" else f"stages.{k}.hook_out"
        width = shape[1] if layout == "nchw" else shape[-1]
        site = Site(name, layers.kind, k, path, "output", layout, width, count, is_class, part=record[path].part)
        found.append((record[path].output_at, site))
    ends = [site for _, site in found]
    shapes = [record[site.module].output or () for site in ends]
    grid = _grid(model, ends, shapes, size) if size else (1, BINS)
    for end in ends if layers.kind == "residual" else ():
        inside = [mlp_site(model, end, record), heads_site(model, end, record)]
        inside += [pattern_site(model, end, record)] if grid else []
        found += [(record[site.module].input_at, site) for site in inside if site is not None]
    found.sort(key=lambda pair: pair[0])
    sites = {site.name: site for _, site in found}
    notes = prefix.notes if any(site.prefix_tokens for site in ends) else ()
    if size:
        patterned = {site.layer for site in sites.values() if site.kind == "pattern"}
        notes += attention_notes(model, [end for end in ends if end.layer not in patterned], len(ends), record)
    return Sites(sites, max(site.prefix_tokens for site in ends), grid, notes)


def no_layers(model: nn.Module) -> BackboneError:
    return BackboneError(
        f"No layers were found in {type(model).__name__}",
        "No stack of blocks or stages in it returned (n, tokens, width) or (n, channels, height, width), batch first",
        "Keep the layers in an nn.Sequential or nn.ModuleList whose members each return such a tensor",
    )


def mlp_site(model: nn.Module, end: Site, record: Mapping[str, Fired]) -> Site | None:
    """The input of the last linear (or 1 x 1 convolution) of a block's MLP: its hidden units, past the activation."""
    from torch import nn

    block, shape = end.module, record[end.module].output or ()
    modules = dict(model.get_submodule(block).named_modules(prefix=block))
    places = math.prod(shape[2:] if end.layout == "nchw" else shape[1:-1])
    closing: list[tuple[int, str, Layout, int]] = []
    for path, module in modules.items():
        given = record[path].input if path in record else None
        if not given or given[0] != TRIAL_BATCH or _is_attention(path[len(block) :]):
            continue
        if isinstance(module, nn.Linear) and module.out_features == end.width:
            # Hidden units may come as a sequence where the block returns a map (Swin); never for some tokens only.
            if len(given) == 4 or (len(given) == 3 and given[1] == places):
                layout: Layout = "nhwc" if len(given) == 4 else "tokens"
                closing.append((record[path].input_at, path, layout, module.in_features))
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == end.width:
            closing.append((record[path].input_at, path, "nchw", module.in_channels))
    never = Fired()  # one that lies in several blocks is known by its name in the first
    for at, path, layout, hidden in sorted(closing, reverse=True):
        named = any(part in _MLP_NAMES for part in path[len(block) :].split("."))
        if named or any(
            isinstance(module, nn.Linear)
            and module.out_features >= hidden
            and 0 < record.get(other, never).input_at < at
            for other, module in modules.items()
        ):
            inside = (end.prefix_tokens, end.class_token) if layout == "tokens" else (0, False)
            return Site(f"blocks.{end.layer}.mlp.hook_post", "mlp", end.layer, path, "input", layout, hidden, *inside)
    return None


def heads_site(model: nn.Module, end: Site, record: Mapping[str, Fired]) -> Site | None:
    """The input of the projection ``attn.proj`` of a block, over all its tokens: its heads' outputs side by side.

    None for attention within windows, and for attention that calls no module of that name.
    """
    from torch import nn

    owner = f"{end.module}.attn"
    path, modules = f"{owner}.proj", dict(model.named_modules())
    projection, heads = modules.get(path), getattr(modules.get(owner), "num_heads", 0)
    if not isinstance(projection, nn.Linear) or not isinstance(heads, int) or heads < 1:
        return None
    width, output = projection.in_features, record[end.module].output or ()
    if len(output) != 3 or record[path].input != (*output[:2], width) or width % heads:
        return None
    name, tokens = f"blocks.{end.layer}.attn.hook_z", (end.prefix_tokens, end.class_token)
    return Site(name, "heads", end.layer, path, "input", "tokens", width, *tokens, heads)


def pattern_site(model: nn.Module, end: Site, record: Mapping[str, Fired]) -> Site | None:
    """The attention dropout of a block whose input is (n, heads, tokens, tokens) over all tokens of the block, or None.

    Attention within windows, over channels, or mixed between heads after the softmax has no pattern.
    """
    output = record[end.module].output or ()
    for path, fired in record.items():
        if not (path.startswith(f"{end.module}.") and path.endswith("attn_drop") and len(fired.input or ()) == 4):
            continue
        n, heads, queries, keys = fired.input or ()
        whole = n == TRIAL_BATCH and len(output) == 3 and queries == keys == output[1]
        if whole and not _untold_by_shape(model, path, fired):
            name, tokens = f"blocks.{end.layer}.attn.hook_pattern", (end.prefix_tokens, end.class_token)
            return Site(name, "pattern", end.layer, path, "input", "tokens", heads, *tokens)
    return None


def attention_notes(model: nn.Module, ends: Sequence[Site], depth: int, record: Mapping[str, Fired]) -> tuple[str, ...]:
    """One sentence on the attention inside layers that have no pattern site, if there is any."""
    found = [dict.fromkeys(_attention_inside(model, end.module, record)) for end in ends]
    kinds = list(dict.fromkeys(kind for inside in found for kind in inside))
    if not kinds:
        return ()
    count = sum(bool(inside) for inside in found)
    where = "" if count == depth else f"in {count} of {depth} layers "
    ways = ", or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
    return (f"{where}attention {ways} has no pattern over all patches: energy maps are used instead",)


def _attention_inside(model: nn.Module, layer: str, record: Mapping[str, Fired]) -> Iterator[str]:
    """What keeps each attention inside a layer from having a pattern, as a few words."""
    from torch import nn

    shown: list[str] = []
    for path, module in model.get_submodule(layer).named_modules(prefix=layer):
        fired = record.get(f"{path}.attn_drop", Fired())
        if fired.input:
            shown.append(f"{path}.")
            yield _untold_by_shape(model, f"{path}.attn_drop", fired) or _kind_of(fired.input, record[path].output)
        # Parts of an attention may know its heads too: relative positions do.
        elif (
            record.get(path, Fired()).calls
            and not path.startswith(tuple(shown))
            and (_is_attention(path[len(layer) :]) or isinstance(module, nn.MultiheadAttention))
            and _has_heads(module)
        ):
            yield "that shows no probabilities"


def _untold_by_shape(model: nn.Module, path: str, fired: Fired) -> str:
    """Why probabilities of the right shape, the input of a dropout, are none from patch to patch; empty if they are."""
    owner = type(model.get_submodule(path.rpartition(".")[0])).__name__
    if owner.startswith(("XCA", "CrossCovariance")):
        return "over channels"
    return "mixed between heads" if fired.lowest_input < 0 or owner.startswith("TalkingHead") else ""


def _kind_of(probabilities: Shape, output: Shape | None) -> str:
    """The kind of attention, by the shapes of its probabilities and of what it gives."""
    if len(probabilities) != 4 or probabilities[0] != TRIAL_BATCH:
        return "within windows or grids"
    queries, keys = probabilities[2:]
    output = output or ()
    if probabilities[2:] == output[2:]:
        return "of linear cost"
    if queries in (math.prod(output[1:-1]), math.prod(output[2:])):
        return "at several resolutions" if queries == keys else "to pooled patches"
    return "over channels" if queries == keys else "of another form"


def _has_heads(module: nn.Module) -> bool:
    return any(isinstance(getattr(module, name, None), int) for name in ("num_heads", "num_attention_heads", "heads"))


def _is_attention(path: str) -> bool:
    return any(part.startswith(("attn", "self_attn", "attention", "self_attention")) for part in path.split("."))


@dataclass(frozen=True)
class PrefixRule:
    """How many tokens stand before the patches, and whether the first is a CLS token."""

    declared: int | None
    patches: int | None
    class_token: bool
    size: tuple[int, int]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, size: tuple[int, int]) -> PrefixRule:
        declared = getattr(model, "num_prefix_tokens", None)
        declared = int(declared) if isinstance(declared, int) else None
        patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
        patches = int(patches) if isinstance(patches, int) else None
        names = [name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()]
        named = any(name in CLASS_TOKEN_NAMES for name in names)
        registers = any(name.startswith(("reg", "storage", "dist")) for name in names)
        if declared is None and named and not registers:
            return cls(1, patches, True, size)
        if named or registers or type(model).__module__.startswith("timm."):
            # A model that only has registers pools its patches.
            inferred = declared is None and not registers
            return cls(declared, patches, named or inferred, size)
        note = "the first token is taken for a CLS token: the model has prefix tokens and does not name them"
        return cls(declared, patches, True, size, (note,))

    @classmethod
    def of_sequence(cls, model: nn.Module, preprocessing: Reader) -> PrefixRule:
        """Of a model of texts, by its tokeniser; of sounds, by the tokens that it learns."""
        names = [name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()]
        learned = sum(name in (*CLASS_TOKEN_NAMES, "distillation_token") for name in names)
        count = int(getattr(preprocessing, "class_token", False)) if preprocessing.modality == "text" else learned
        return cls(count, None, count > 0, (1, 1))

    def count(self, length: int) -> int:
        """Prefix tokens in a sequence of this length."""
        if length == self.patches:
            return 0  # the CLS token joins after these blocks (CaiT, XCiT)
        if self.declared is not None and self.declared < length:
            return self.declared
        fits = (n for n in range(min(MAX_PREFIX, length - 1) + 1) if grid_of(length - n, self.size))
        return next(fits, 0)


def grid_of(patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """(rows, columns) of this many patches on an image of this size, if they fill a grid of its aspect."""
    height, width = size
    rows = max(1, round(math.sqrt(patches * height / width)))
    columns = patches // rows
    return (
        (rows, columns) if rows * columns == patches and abs(rows * width - columns * height) < max(size) / 2 else None
    )


def _grid(model: nn.Module, ends: list[Site], shapes: list, size: tuple[int, int]) -> tuple[int, int] | None:
    site = ends[0]
    # Without prefix tokens: a class token may join at a later block (ConViT).
    places = {(shape[1] - end.prefix_tokens, *shape[2:-1]) for end, shape in zip(ends, shapes, strict=True)}
    if site.kind != "residual" or len(places) != 1:
        return None
    if site.layout == "nhwc":
        return shapes[0][1], shapes[0][2]
    if site.layout != "tokens":
        return None
    (count,) = places.pop()
    stated = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(stated, tuple | list) and len(stated) == 2 and math.prod(stated) == count:
        return int(stated[0]), int(stated[1])
    return grid_of(count, size)


def is_channels_first(model: nn.Module, shape: Shape, record: Mapping[str, Fired]) -> bool:
    """Whether a shape of three axes is (n, channels, length): convolutions gave it, and no map over its last axis."""
    from torch import nn

    def gave(*kinds: type[nn.Module]) -> bool:
        return any(record[path].output == shape for path, module in model.named_modules() if isinstance(module, kinds))

    convolved = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)
    return len(shape) == 3 and gave(*convolved) and not gave(nn.Linear, nn.LayerNorm)


def _usable(fired: Fired | None) -> bool:
    return bool(fired and fired.output and 2 <= len(fired.output) <= 4 and fired.output[0] == TRIAL_BATCH)


def _layout(shape: Shape, channels_last: bool) -> Layout:
    if len(shape) == 4:
        return "nhwc" if channels_last else "nchw"
    return "tokens" if len(shape) == 3 else "vector"


def _channels_last(model: nn.Module, shapes: list, size: tuple[int, int]) -> bool:
    """Whether maps are (n, height, width, channels): by the axes whose ratio is the image's, else as the model says."""
    ratio = size[0] / size[1]

    def votes() -> Iterator[int]:
        for shape in shapes:
            if len(shape) == 4:
                first, last = math.log(shape[2] / shape[3] / ratio), math.log(shape[1] / shape[2] / ratio)
                if abs(abs(first) - abs(last)) > 1e-6:
                    yield 1 if abs(last) < abs(first) else -1

    total = sum(votes())
    return total > 0 if total else str(getattr(model, "output_fmt", "")).endswith("NHWC")
