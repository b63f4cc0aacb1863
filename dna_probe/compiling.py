"""The reader that ``Detector.compile`` puts in place of the backbone: trimmed, and made fast on this machine.

``trimming`` leaves out work without changing the numbers beyond rounding. Here the rest is made cheaper: results are
written over what is not needed any more, and linear maps go to oneDNN where that is there. oneDNN rounds otherwise, and
a model that is not continuous, such as one with quantised activations, may take that for another input: every reader is
compared with the backbone on photographs, in units and in probabilities, before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn

from dna_probe.collection import NoReadableImage, Options, require_modality
from dna_probe.errors import BackboneError, DataError, one_line
from dna_probe.images.probe_set import photographs
from dna_probe.images.sets import ImageSet
from dna_probe.moments import require_finite
from dna_probe.shards import stream_batches
from dna_probe.sites import Reading
from dna_probe.trimming import TOLERANCE, deviation, read_untrimmed, trim

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

aten = torch.ops.aten
# Photographs that a reader is tried on, and the largest change of a probability: half of what is promised.
TRIED = 8
PROBABILITY_TOLERANCE = 5e-7
# Sums in another order, through all layers.
COMPILED_TOLERANCE = 1e-4
# What oneDNN does in one pass with the linear map before it: operation -> its names there, by `approximate` for GELU.
_FUSED = {
    "gelu.default/none": ("gelu", "none"),
    "gelu.default/tanh": ("gelu", "tanh"),
    "relu.default": ("relu", ""),
    "silu.default": ("swish", ""),
}
_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)
# Operations whose output is a tensor of its own, beside those that work entry by entry.
_NEW = [aten.linear.default, aten.matmul.default, aten.bmm.default, aten.conv2d.default, aten.layer_norm.default]
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _NEW.append(torch.ops.mkldnn._linear_pointwise.default)


@dataclass(frozen=True)
class Trimmed:
    """What ``Detector.compile`` came to.

    Attributes:
        reader: pixels -> units, as ``trimming.trim``; None where the backbone runs as it is, up to its deepest unit.
        note: what was done, or why not.
    """

    reader: nn.Module | None
    note: str


def compile_reader(
    backbone: Backbone,
    units_by_reading: Mapping[Reading, Sequence[int]],
    judge: Callable[[np.ndarray], np.ndarray],
) -> Trimmed:
    """The fastest reader that gives the same; what stands in the way of one is in its note, not raised.

    Args:
        judge: units (n, units) -> probabilities.
    """
    try:
        trimmed = trim(backbone, units_by_reading)
    except BackboneError as error:
        return Trimmed(None, f"not trimmed: {error.why}")
    pixels = _trial(backbone)
    expected = read_untrimmed(backbone, units_by_reading, pixels)
    probabilities = judge(expected.cpu().numpy())
    moved = " and ".join(trimmed.meta["moved"])
    note = f"trimmed: cut, {moved} moved" if moved else "trimmed: cut"
    for done, change_over in ((", linear maps by oneDNN", with_onednn), ("", lambda module: module)):
        try:
            module = change_over(trimmed)
            if module is None:
                continue
            with torch.inference_mode():
                reader = in_place(module, pixels)
                found = reader(pixels)
        except (AttributeError, RuntimeError):
            # An operation without a public name may be missing, or not made for this processor.
            continue
        change = np.abs(judge(found.cpu().numpy()) - probabilities).max()
        if deviation(found, expected, units_by_reading) <= TOLERANCE and change <= PROBABILITY_TOLERANCE:
            return Trimmed(reader, note + done)
    return Trimmed(None, "not trimmed: on photographs the trace deviates from the model")


def compile_readings(backbone: Backbone, readings: Sequence[Reading]) -> Callable[[Tensor], Tensor]:
    """Readings of a backbone of images by ``torch.compile``: pixels (n, 3, height, width) -> (n, units) float32.

    The trace of ``trimming.trim`` is compiled, hooks and all, and kept as long as the backbone's weights are the same.
    The first batch takes a minute or so.

    Raises:
        BackboneError: the backbone cannot be traced or compiled, or gives other numbers then.
    """
    known = _COMPILED.setdefault(backbone, {})
    key = (backbone.weight_hash, backbone.device, tuple(readings))
    if key not in known:
        known[key] = _compiled(backbone, {reading: range(reading.width) for reading in readings})
    return known[key]


def _compiled(backbone: Backbone, units_by_reading: Mapping[Reading, Sequence[int]]) -> Callable[[Tensor], Tensor]:
    pixels = torch.as_tensor(backbone.preprocessing.trial(2)).to(backbone.device)
    try:
        module = torch.compile(trim(backbone, units_by_reading))
        with torch.inference_mode():
            change = deviation(module(pixels), read_untrimmed(backbone, units_by_reading, pixels), units_by_reading)
    except BackboneError as error:
        raise BackboneError(f"{backbone.name} cannot be compiled", error.why, "Leave compiling out") from error
    except Exception as error:
        # Few of the compiler's errors have a class of their own.
        raise BackboneError(
            f"{backbone.name} cannot be compiled", one_line(error), "Install a C++ compiler, or leave compiling out"
        ) from error
    if change > COMPILED_TOLERANCE:
        raise BackboneError(
            f"{backbone.name} cannot be compiled", f"It deviates by {change:.1e} from the model", "Leave compiling out"
        )
    return module


_COMPILED: WeakKeyDictionary[Backbone, dict[Any, Callable[[Tensor], Tensor]]] = WeakKeyDictionary()


def read_units(
    backbone: Backbone, reader: nn.Module, images: ImageSet, options: Options
) -> tuple[np.ndarray, list[int], list[tuple[str, str]]]:
    """Units of a set of images, (n, units); the positions of the images they belong to; and those that failed.

    Raises:
        NoReadableImage: not one of them could be read.
        NumericalError: a unit is not finite.
    """
    require_modality(backbone, images)
    rows: list[np.ndarray] = []
    index: list[int] = []
    skipped: list[tuple[str, str]] = []
    with torch.inference_mode():
        for positions, pixels in stream_batches(backbone, images, options, skipped):
            rows.append(reader(pixels).cpu().numpy())
            require_finite(rows[-1], "unit")
            index += positions
    if not index:
        raise NoReadableImage(images, skipped)
    order = np.argsort(index)
    return np.concatenate(rows)[order], [index[i] for i in order], skipped


def with_onednn(module: fx.GraphModule) -> fx.GraphModule | None:
    """The same with its linear maps, and the activations after them, computed by oneDNN; None where there are none.

    For float32 on a CPU. ``torch.compile`` puts the same operation into its code for CPUs; it has no public name.
    """
    if not any(_is_plain_linear(node, module) for node in module.graph.nodes):
        return None
    graph = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        linear, names = node, ("none", "")
        activation = _activation(node)
        if activation and _is_plain_linear(node.args[0], module) and len(node.args[0].users) == 1:
            linear, names = node.args[0], activation
        if _is_plain_linear(linear, module):
            x, weight, bias = (*linear.args, None)[:3]
            arguments: Any = (done[x], done[weight], bias and done[bias], names[0], [], names[1])
            done[node] = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, arguments)
        else:
            done[node] = graph.node_copy(node, done.__getitem__)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph, "TrimmedReader")


def in_place(module: fx.GraphModule, pixels: Tensor) -> fx.GraphModule:
    """The same with results written over an operand that nothing else looks at: large new tensors cost page faults.

    Args:
        pixels: a batch to see shapes on.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(module).propagate(pixels)
    graph = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        done[node] = graph.node_copy(node, done.__getitem__)
        found = _overwritten(node)
        if found is not None:
            target, position = found
            done[node].target = target
            done[node].args = (done[node].args[position], *done[node].args[:position], *done[node].args[position + 1 :])
    return fx.GraphModule(module, graph, "TrimmedReader")


def _overwritten(node: Any) -> tuple[Any, int] | None:
    """The operation that writes over an operand of an entrywise one, and the operand's position."""
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return None
    packet = getattr(aten, node.target.overloadpacket.__name__ + "_", None)
    if packet is None or node.target._overloadname not in packet.overloads():
        return None
    swappable = node.target in _COMMUTATIVE and not node.kwargs
    for position, operand in enumerate(node.args[: 2 if swappable else 1]):
        if isinstance(operand, fx.Node) and _is_spent(operand, node):
            return getattr(packet, node.target._overloadname), position
    return None


def _is_spent(operand: Any, user: Any) -> bool:
    """Whether a tensor is new, of the shape of what its only user makes of it."""
    new = operand.target in _NEW or torch.Tag.pointwise in getattr(operand.target, "tags", ())
    before, after = operand.meta.get("tensor_meta"), user.meta.get("tensor_meta")
    if not new or len(operand.users) > 1 or before is None or after is None:
        return False
    return (before.shape, before.dtype) == (after.shape, after.dtype)


def _activation(node: fx.Node) -> tuple[str, str] | None:
    name = str(node.target).removeprefix("aten.")
    return _FUSED.get(f"{name}/{node.kwargs.get('approximate', 'none')}" if name == "gelu.default" else name)


def _is_plain_linear(node: Any, module: fx.GraphModule) -> bool:
    """A linear map with constant weights, in float32 on a CPU."""
    if node.target is not aten.linear.default or node.args[1].op != "get_attr":
        return False
    weight = getattr(module, node.args[1].target)
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _trial(backbone: Backbone) -> Tensor:
    """A batch of photographs, which tell more of a model than noise."""
    try:
        chosen = list(photographs().items())[:TRIED]
        pixels = np.stack([backbone.preprocessing.load(image, name) for name, image in chosen])
    except DataError:
        pixels = backbone.preprocessing.trial(TRIED)
    return torch.as_tensor(pixels).to(backbone.device)
