"""A detector that costs less than its backbone: cut after the deepest unit, and in the last layers only what is read.

The backbone is traced once (``torch.export``) together with its readings. What comes after the deepest of them falls
away, and selections of units and tokens and means over patches are moved towards the input where that is exact (see
``dna_probe.narrowing``). What comes out is compared with the untrimmed reading before it is used.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from dna_probe.errors import BackboneError
from dna_probe.hooks import attached, frozen
from dna_probe.narrowing import MOVES, narrow
from dna_probe.sites import Reading, Site

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone

aten = torch.ops.aten
# Largest deviation from the untrimmed reading, as a share of the values: see `deviation`.
TOLERANCE = 1e-5
# Batch sizes on which both are compared; a batch of one is where traced shapes break first.
TRIALS = (3, 1)


class UnitReader(nn.Module):
    """The units of a backbone as the output of a module: pixels (n, 3, height, width) -> (n, units) float32."""

    def __init__(self, module: nn.Module, sites: Mapping[str, Site], units_by_reading: Mapping[Reading, Sequence[int]]):
        super().__init__()
        self.module, self.sites, self.units = module, sites, dict(units_by_reading)
        weight = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
        self.dtype = weight.dtype
        for number, (reading, indices) in enumerate(self.units.items()):
            whole = list(indices) == list(range(reading.width))
            chosen = None if whole else torch.tensor(indices, device=weight.device)
            self.register_buffer(f"units_{number}", chosen, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        found: dict[Reading, Tensor] = {}

        def visit(name: str) -> Any:
            def read(activation: Tensor) -> None:
                for number, reading in enumerate(self.units):
                    if reading.site.name != name:
                        continue
                    indices = getattr(self, f"units_{number}")
                    if indices is None:
                        # Not a view, which the next module in place would change.
                        found[reading] = reading.reduce(activation).float().clone()
                    elif reading.reduction in ("cls", "mean"):
                        found[reading] = reading.reduce(activation).index_select(1, indices).float()
                    else:
                        # No rule moves a selection through these.
                        axis = 1 if reading.site.layout == "nchw" else activation.ndim - 1
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
        ``meta["moved"]`` says what was moved, see ``narrowing.narrow``: nothing in half precision, in which another
        order of sums shows. The backbone is not changed; where its weights change later, trim again.

    Raises:
        BackboneError: the backbone does not take images, or cannot be traced, or its trace gives other numbers.
    """
    modality = backbone.preprocessing.modality
    if modality != "image":
        raise BackboneError(f"{backbone.name} cannot be trimmed", f"It takes {modality}, of any length")
    trials = [torch.as_tensor(backbone.preprocessing.trial(count)).to(backbone.device) for count in TRIALS]
    expected = [read_untrimmed(backbone, units_by_reading, pixels) for pixels in trials]
    why = ""
    with torch.no_grad(), frozen(backbone.module):
        try:
            graph, constants = trace(UnitReader(_twin(backbone.module), backbone.sites, units_by_reading), trials[0])
        except Exception as error:
            # Whatever tracing stumbles over in somebody's model is a reason not to trim it, no fault of the detector.
            why = f"It cannot be traced: {_reason(error)}"
            raise BackboneError(f"{backbone.name} cannot be trimmed", why) from error
        exact = backbone.dtype in (torch.float32, torch.float64)
        for move in (MOVES, MOVES[:1], ()) if exact else ((),):
            try:
                trimmed = narrow(graph, constants, move)
                pairs = zip(trials, expected, strict=True)
                worst = max(deviation(trimmed(pixels), units, units_by_reading) for pixels, units in pairs)
            except Exception as error:
                why = f"Its trace cannot be run: {_reason(error)}"
                continue
            if worst <= TOLERANCE:
                trimmed.meta["moved"] = move
                return trimmed
            why = f"Its trace deviates by {worst:.1e} from the model"
    raise BackboneError(f"{backbone.name} cannot be trimmed", why)


def read_untrimmed(backbone: Backbone, units_by_reading: Mapping[Reading, Sequence[int]], pixels: Tensor) -> Tensor:
    """The same units by hooks on the whole model."""
    with torch.no_grad(), frozen(backbone.module):
        return UnitReader(backbone.module, backbone.sites, units_by_reading)(pixels)


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


def _twin(module: nn.Module) -> nn.Module:
    """A copy with the same tensors, so that what a traced forward leaves on its modules does not stay on the model."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def trace(module: nn.Module, pixels: Tensor) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The functional graph of a module for any batch size, and its constants by the names of their nodes.

    Raises:
        ValueError: the module changes its buffers, or branches, while it runs. Others, as ``torch.export`` has them.
    """
    from torch.export import Dim, export
    from torch.export.graph_signature import InputKind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(module, (pixels,), dynamic_shapes=({0: Dim("batch")},), strict=False)
        program = program.run_decompositions({})
    graph, constants = program.graph, {}
    nodes = {node.name: node for node in graph.nodes}
    for given in program.graph_signature.input_specs:
        if given.kind == InputKind.USER_INPUT:
            continue
        node = nodes[given.arg.name]
        stored = program.state_dict if given.target in program.state_dict else program.constants
        constants[node.name] = stored[given.target]
        node.op, node.target = "get_attr", node.name
    for node in graph.nodes:
        # Of the three outputs of a batch norm only the first is of use: the operation that has no others.
        if node.target is operator.getitem and node.args[0].target is aten._native_batch_norm_legit_no_training.default:
            *tensors, momentum, eps = node.args[0].args
            node.target, node.args = aten.batch_norm.default, (*tensors, False, momentum, eps, True)
    output = graph.output_node()
    results: Any = output.args[0]
    if len(results) != 1 or any(node.op == "get_attr" and node.name not in constants for node in graph.nodes):
        raise ValueError("it changes its buffers, or branches, while it runs")
    output.args = (results[0],)
    return graph, constants


def _reason(error: Exception) -> str:
    if "specialized it to be a constant" in str(error):
        return "its forward pass fixes the batch size, as len(x) does and x.shape[0] does not"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
