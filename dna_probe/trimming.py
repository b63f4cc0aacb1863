"""A detector that costs less than its backbone: cut after the deepest unit, and in the last layers only what is read.

The backbone is traced once (``torch.export``) together with its readings. What comes after the deepest of them falls
away, and selections of units and tokens and means over patches are moved towards the input where that is exact (see
``dna_probe.narrowing``). What comes out is compared with the untrimmed reading before it is used.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dna_probe.collection import NoReadableImage, Options, require_modality, stream_batches
from dna_probe.errors import BackboneError
from dna_probe.hooks import attached, frozen
from dna_probe.images.sets import ImageSet
from dna_probe.moments import require_finite
from dna_probe.narrowing import MOVES, narrow
from dna_probe.sites import Reading, Site

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

# Largest deviation from the untrimmed reading, as a share of the values: see `deviation`.
TOLERANCE = 1e-5
# Batch sizes on which both are compared; a batch of one is where traced shapes break first.
TRIALS = (3, 1)
# What oneDNN does in one pass with the linear map before it: operation -> its names there, by `approximate` for GELU.
_FUSED = {
    "gelu.default/none": ("gelu", "none"),
    "gelu.default/tanh": ("gelu", "tanh"),
    "relu.default": ("relu", ""),
    "silu.default": ("swish", ""),
}


@dataclass(frozen=True)
class Trimmed:
    """What ``Detector.compile`` came to.

    Attributes:
        reader: pixels -> units, see ``trim``; None where the backbone runs as it is, up to its deepest unit.
        note: what was done, or why not.
    """

    reader: nn.Module | None
    note: str


def compile_reader(backbone: Backbone, units_by_reading: Mapping[Reading, Sequence[int]]) -> Trimmed:
    """The fastest reader that gives the same numbers; what stands in the way of one is in its note, not raised."""
    try:
        trimmed = trim(backbone, units_by_reading)
    except BackboneError as error:
        return Trimmed(None, f"not trimmed: {error.why}")
    moved = " and ".join(trimmed.meta["moved"]) or "nothing"
    faster = with_onednn(trimmed, _trials(backbone), units_by_reading)
    if faster is None:
        return Trimmed(trimmed, f"trimmed: cut, {moved} moved")
    return Trimmed(faster, f"trimmed: cut, {moved} moved, linear maps by oneDNN")


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


class UnitReader(nn.Module):
    """The units of a backbone as the output of a module: pixels (n, 3, height, width) -> (n, units) float32."""

    def __init__(self, module: nn.Module, sites: Mapping[str, Site], units_by_reading: Mapping[Reading, Sequence[int]]):
        super().__init__()
        self.module, self.sites, self.units = module, sites, dict(units_by_reading)
        weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
        self.dtype = weight.dtype
        for number, indices in enumerate(self.units.values()):
            self.register_buffer(f"units_{number}", torch.tensor(indices, device=weight.device), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        found: dict[Reading, Tensor] = {}

        def visit(name: str) -> Any:
            def read(activation: Tensor) -> None:
                for number, reading in enumerate(self.units):
                    if reading.site.name == name:
                        axis = 1 if reading.site.layout == "nchw" else activation.ndim - 1
                        indices = getattr(self, f"units_{number}")
                        found[reading] = reading.reduce(activation.index_select(axis, indices)).float()

            return read

        visitors = {reading.site.name: visit(reading.site.name) for reading in self.units}
        with attached(self.module, self.sites, visitors, stop=False) as run:
            run(pixels.to(self.dtype))
        return torch.cat([found[reading] for reading in self.units], 1)


def trim(backbone: Backbone, units_by_reading: Mapping[Reading, Sequence[int]]) -> fx.GraphModule:
    """What computes some units of a backbone, and nothing else.

    Args:
        units_by_reading: positions of the units in each reading.

    Returns:
        A module that maps pixels (n, 3, height, width), of any n, on the backbone's device, to the units (n, units)
        float32, reading by reading. Its weights are the backbone's own, but for those that are cut. Its
        ``meta["moved"]`` says what was moved, see ``narrowing.narrow``. The backbone is not changed; where its weights
        change later, trim again.

    Raises:
        BackboneError: the backbone does not take images, or cannot be traced, or its trace gives other numbers.
    """
    modality = backbone.preprocessing.modality
    if modality != "image":
        raise BackboneError(f"{backbone.name} cannot be trimmed", f"It takes {modality}, of any length")
    with torch.no_grad(), frozen(backbone.module):
        reader = UnitReader(_twin(backbone.module), backbone.sites, units_by_reading)
        trials = _trials(backbone)
        expected = [reader(pixels) for pixels in trials]
        graph, constants = trace(reader, trials[0], backbone.name)
        for move in (MOVES, MOVES[:1], ()):
            trimmed = narrow(graph, constants, move)
            worst = max(deviation(trimmed(x), y, units_by_reading) for x, y in zip(trials, expected, strict=True))
            if worst <= TOLERANCE:
                trimmed.meta["moved"] = move
                return trimmed
    raise BackboneError(f"{backbone.name} cannot be trimmed", f"Its trace deviates by {worst:.1e} from the model")


def with_onednn(
    trimmed: fx.GraphModule, trials: Sequence[Tensor], units_by_reading: Mapping[Reading, Sequence[int]]
) -> fx.GraphModule | None:
    """The same module with its linear maps, and the activations after them, computed by oneDNN; for float32 on a CPU.

    ``torch.compile`` puts the same operation into its code for CPUs. It has no public name: None where there is none,
    where no linear map can use it, or where its numbers deviate.
    """
    operation = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    if operation is None:
        return None
    graph, fused = fx.Graph(), 0
    done: dict[fx.Node, fx.Node] = {}
    for node in trimmed.graph.nodes:
        linear, names = node, ("none", "")
        activation = _activation(node)
        if activation and _is_plain_linear(node.args[0], trimmed) and len(node.args[0].users) == 1:
            linear, names = node.args[0], activation
        if _is_plain_linear(linear, trimmed):
            x, weight, bias = (*linear.args, None)[:3]
            arguments: Any = (done[x], done[weight], bias and done[bias], names[0], [], names[1])
            done[node] = graph.call_function(operation.default, arguments)
            fused += 1
        else:
            done[node] = graph.node_copy(node, done.__getitem__)
    graph.eliminate_dead_code()
    faster = fx.GraphModule(trimmed, graph, "TrimmedReader")
    try:
        with torch.no_grad():
            worst = max(deviation(faster(pixels), trimmed(pixels), units_by_reading) for pixels in trials)
    except RuntimeError:
        return None
    return faster if fused and worst <= TOLERANCE else None


def _activation(node: fx.Node) -> tuple[str, str] | None:
    name = str(node.target).removeprefix("aten.")
    return _FUSED.get(f"{name}/{node.kwargs.get('approximate', 'none')}" if name == "gelu.default" else name)


def _is_plain_linear(node: Any, module: fx.GraphModule) -> bool:
    """A linear map with constant weights, in float32 on a CPU."""
    if node.target is not torch.ops.aten.linear.default or node.args[1].op != "get_attr":
        return False
    weight = getattr(module, node.args[1].target)
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def deviation(found: Tensor, expected: Tensor, units_by_reading: Mapping[Reading, Sequence[int]]) -> float:
    """Largest difference between two batches of units, as a share of the unit's largest value or of its reading's rms.

    The rms keeps units that are near zero in all of the batch from being held to more digits than their reading has.
    """
    worst = 0.0
    sizes = [len(indices) for indices in units_by_reading.values()]
    for a, b in zip(found.split(sizes, 1), expected.split(sizes, 1), strict=True):
        scale = torch.maximum(b.abs().amax(0), b.square().mean().sqrt()).clamp_min(torch.finfo(b.dtype).tiny)
        worst = max(worst, float(((a - b).abs() / scale).max().nan_to_num(torch.inf)))
    return worst


def _trials(backbone: Backbone) -> list[Tensor]:
    return [torch.as_tensor(backbone.preprocessing.trial(count)).to(backbone.device) for count in TRIALS]


def _twin(module: nn.Module) -> nn.Module:
    """A copy with the same tensors, so that what a traced forward leaves on its modules does not stay on the model."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def trace(module: nn.Module, pixels: Tensor, name: str) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The functional graph of a module for any batch size, and its constants by the names of their nodes."""
    from torch.export import Dim, export
    from torch.export.graph_signature import InputKind

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = export(module, (pixels,), dynamic_shapes=({0: Dim("batch")},), strict=False)
            program = program.run_decompositions({})
    except Exception as error:
        # Whatever tracing stumbles over in somebody's model is a reason not to trim it, not a fault of the detector.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "specialized it to be a constant" in str(error):
            reason = "its forward pass fixes the batch size, as len(x) does and x.shape[0] does not"
        raise BackboneError(f"{name} cannot be trimmed", f"torch.export cannot trace it: {reason[:200]}") from error
    graph, constants = program.graph, {}
    nodes = {node.name: node for node in graph.nodes}
    for given in program.graph_signature.input_specs:
        if given.kind == InputKind.USER_INPUT:
            continue
        node = nodes[given.arg.name]
        stored = program.state_dict if given.target in program.state_dict else program.constants
        constants[node.name] = stored[given.target]
        node.op, node.target = "get_attr", node.name
    output = graph.output_node()
    if len(output.args[0]) != 1 or any(n.op == "get_attr" and n.name not in constants for n in graph.nodes):
        raise BackboneError(f"{name} cannot be trimmed", "It changes its own buffers, or branches, while it runs")
    output.args = (output.args[0][0],)
    return graph, constants
