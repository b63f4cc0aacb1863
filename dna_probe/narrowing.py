"""Compute only what is read: selections and means are moved through a traced network towards its input.

A trimmed reader asks little of the last layers of a network: some units of one token, or of the mean over the tokens.
Whoever asks for a part of a tensor makes a *demand* on the operation that computes it, and an operation that is asked
for less than all of its output can often be done on less of its input: a linear map on one token, or with some of its
rows. Demands are gathered from the outputs to the inputs; then the graph is written anew from the inputs to the
outputs. What no rule knows (see ``narrowing_rules``) is computed in full, as it was.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from dna_probe.narrowing_rules import RESHAPES, Pick, given, is_static, operands, rule_of, shape_of

aten = torch.ops.aten
MOVES = ("selections", "means")

# What is wanted of a tensor: (axis, pick), by axis. The number of axes stays.
Demand = tuple[tuple[int, Pick], ...]
WHOLE: Demand = ()


@dataclass(frozen=True)
class _View:
    """A selection or mean in the traced graph: itself a demand on what it is taken of, less the axes it drops."""

    of: fx.Node
    demand: Demand
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Moved:
    """The same operation on parts of its operands (by position), and what is still to be taken of that."""

    operands: Mapping[int, Demand]
    rest: Demand


@dataclass(frozen=True)
class _Taken:
    """A part of what is there for another demand on the same node."""

    of: Demand


def narrow(graph: fx.Graph, constants: Mapping[str, Tensor], move: Collection[str] = MOVES) -> fx.GraphModule:
    """The same output from as little computation as the rules find.

    Args:
        graph: functional aten operations with ``meta["val"]``, as ``torch.export`` makes them; its constants are
            ``get_attr`` nodes. Only axis 0, the batch, may have a symbolic size.
        constants: the tensors by their names. They are shared with the result where they are not cut or computed with.
        move: what is moved: "selections", "means", both, or neither, when only what no output needs is left out. Moved
            means change the order of sums, which half precision does not forgive.
    """
    return _Writer(graph, constants, _Demands(graph, constants, move)).module()


class _Demands:
    """What is asked of every node, and how it is met; None: taken of the whole, which is computed."""

    def __init__(self, graph: fx.Graph, constants: Mapping[str, Tensor], move: Collection[str]):
        self.constants, self.move = constants, move
        self.asked: dict[fx.Node, dict[Demand, _View | _Moved | _Taken | None]] = {}
        for node in reversed(graph.nodes):
            if node.op == "output":
                self.ask(*node.all_input_nodes)
            elif node.op == "call_function" and node in self.asked:
                self.settle(node)

    def ask(self, *nodes: fx.Node, demand: Demand = WHOLE) -> None:
        for node in nodes:
            self.asked.setdefault(node, {})[demand] = None

    def settle(self, node: fx.Node) -> None:
        """Pass the demands on a node to its inputs; all who use it have asked."""
        # Less narrow demands first: others may be parts of them.
        asked = self.asked[node] = dict(sorted(self.asked[node].items(), key=lambda entry: len(entry[0])))
        own: list[Demand] = []
        for demand in asked:
            cover = next((other for other in own if set(other) < set(demand)), None)
            asked[demand] = self.view(node, demand) or (None if cover is None else _Taken(cover))
            if asked[demand] is None:
                own.append(demand)
        moved = {demand: self.moved(node, demand) for demand in own}
        # Moved only if that is less work than the whole, from which all of them could be taken.
        if sum(share for _, share in moved.values()) < 1:
            asked.update({demand: how for demand, (how, _) in moved.items()})
        for how in asked.values():
            if isinstance(how, _View):
                self.ask(how.of, demand=how.demand)
            elif isinstance(how, _Moved):
                direct = {i: operand for i, operand in enumerate(operands(node)) if isinstance(operand, fx.Node)}
                for position, operand in direct.items():
                    self.ask(operand, demand=how.operands.get(position, WHOLE))
                self.ask(*(n for n in node.all_input_nodes if n not in direct.values()))
            elif how is None:
                self.ask(*node.all_input_nodes)

    def view(self, node: fx.Node, demand: Demand) -> _View | None:
        """The demand on what a node is a part of, or None if it is an operation."""
        if node.target is aten.cat.default:
            return _within_piece(node, demand)
        part = _piece(*node.args) if node.target is operator.getitem else self.part(node)
        if part is None:
            return None
        of, picks, dropped = part
        kept = [axis for axis in range(len(shape_of(of))) if axis not in dropped]
        for axis, pick in demand:
            inner = picks.get(kept[axis])
            indices = tuple(inner.indices[i] for i in pick.indices) if inner else pick.indices
            picks[kept[axis]] = Pick(indices, pick.mean)
        return _View(of, _demand(picks, shape_of(of)), dropped)

    def part(self, node: fx.Node) -> tuple[fx.Node, dict[int, Pick], tuple[int, ...]] | None:
        """Of which node a selection or a mean is taken, which picks it is, and which axes it drops."""
        if node.target not in (aten.select.int, aten.slice.Tensor, aten.index_select.default, aten.mean.dim):
            return None
        options = given(node)
        of, shape, axes = options["self"], shape_of(options["self"]), options["dim"]
        if any(isinstance(a, fx.Node) for a in node.args[1:]) and node.target is not aten.index_select.default:
            return None
        axes = tuple(axis % len(shape) for axis in ([axes] if isinstance(axes, int) else axes or ()))
        whole = node.target is aten.slice.Tensor and options["step"] == 1 and not options["start"]
        if whole and options["end"] in (None, 2**63 - 1):
            return of, {}, ()
        if not axes or not all(is_static(shape[axis]) for axis in axes):
            return None
        along = range(shape[axes[0]])
        if node.target is aten.mean.dim:
            if "means" not in self.move or options["dtype"] is not None:
                return None
            picks = {axis: Pick(tuple(range(shape[axis])), mean=True) for axis in axes}
            return of, picks, () if options["keepdim"] else axes
        if node.target is aten.select.int:
            return of, {axes[0]: Pick((along[options["index"]],))}, axes
        if node.target is aten.slice.Tensor:
            indices = tuple(along[options["start"] : options["end"] : options["step"]])
        else:
            constant = self.constants.get(options["index"].target)
            indices = () if constant is None else tuple(constant.tolist())
        return (of, {axes[0]: Pick(indices)}, ()) if indices else None

    def moved(self, node: fx.Node, demand: Demand) -> tuple[_Moved, Fraction]:
        """How a demand is met by an operation, and which share of its output is computed for that."""
        rule = rule_of(node)
        if rule is None or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
            return _Moved({}, demand), Fraction(1)
        picks: dict[int, dict[int, Pick]] = {}
        rest, share = [], Fraction(1)
        for axis, pick in demand:
            moves = rule(node, axis, pick) if ("means" if pick.mean else "selections") in self.move else None
            # Of two picks that meet on one axis of an operand, the second is taken after.
            if moves is None or any(a in picks.get(p, {}) for p, goals in moves.items() for a, _ in goals):
                rest.append((axis, pick))
                continue
            for position, goals in moves.items():
                picks.setdefault(position, {}).update(goals)
            share *= Fraction(pick.size, shape_of(node)[axis])
        wanted = {position: _demand(own, shape_of(operands(node)[position])) for position, own in picks.items()}
        return _Moved(wanted, tuple(rest)), share


def _piece(parent: Any, index: Any) -> tuple[fx.Node, dict[int, Pick], tuple[int, ...]] | None:
    """One of the tensors that ``unbind`` or ``split`` give."""
    if parent.target not in (aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default):
        return None
    options, pieces = given(parent), parent.meta["val"]
    of, axis = options["self"], options["dim"] % len(shape_of(options["self"]))
    if not is_static(shape_of(of)[axis]):
        return None
    if parent.target is aten.unbind.int:
        return of, {axis: Pick((index,))}, (axis,)
    start = sum(piece.shape[axis] for piece in pieces[:index])
    return of, {axis: Pick(tuple(range(start, start + pieces[index].shape[axis])))}, ()


def _within_piece(node: fx.Node, demand: Demand) -> _View | None:
    """Entries of a concatenation that all come from one of its pieces."""
    along, picks, end = given(node)["dim"] % len(shape_of(node)), dict(demand), 0
    if along not in picks:
        return None
    for piece in operands(node):
        start, end = end, end + shape_of(piece)[along]
        if all(start <= index < end for index in picks[along].indices):
            picks[along] = Pick(tuple(index - start for index in picks[along].indices), picks[along].mean)
            return _View(piece, _demand(picks, shape_of(piece)))
    return None


def _demand(picks: Mapping[int, Pick], shape: tuple) -> Demand:
    """Sorted, without what is all of an axis."""
    full = [a for a, p in picks.items() if p.indices == tuple(range(shape[a])) and (not p.mean or shape[a] == 1)]
    return tuple(sorted(((axis, pick) for axis, pick in picks.items() if axis not in full), key=lambda entry: entry[0]))


class _Writer:
    """Writes the graph anew, each demand on each node once; what depends on constants alone is computed now."""

    def __init__(self, graph: fx.Graph, constants: Mapping[str, Tensor], demands: _Demands):
        self.old, self.given, self.asked = graph, constants, demands.asked
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.done: dict[tuple[fx.Node, Demand], fx.Node] = {}

    def module(self) -> fx.GraphModule:
        for node in self.old.nodes:
            if node.op == "placeholder":
                self.done[node, WHOLE] = self.graph.placeholder(node.name)
            elif node.op == "get_attr" and node in self.asked:
                self.done[node, WHOLE] = self.constant(self.given[node.name], node.name)
            elif node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.whole))
            for demand, how in self.asked.get(node, {}).items():
                self.done[node, demand] = self.write(node, demand, how)
        self.graph.eliminate_dead_code()
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        constants = {name: value for name, value in self.constants.items() if name in used}
        return fx.GraphModule(constants, self.graph, "TrimmedReader")

    def whole(self, node: fx.Node) -> fx.Node:
        return self.done[node, WHOLE]

    def write(self, node: fx.Node, demand: Demand, how: _View | _Moved | _Taken | None) -> fx.Node:
        if isinstance(how, _View):
            part = self.done[how.of, how.demand]
            return self.call(aten.squeeze.dims, (part, list(how.dropped))) if how.dropped else part
        if isinstance(how, _Taken):
            rest = tuple(entry for entry in demand if entry not in how.of)
            return self.take(self.done[node, how.of], rest, shape_of(node))
        if how is None:
            if (node, WHOLE) not in self.done:
                self.done[node, WHOLE] = self.copy(node, {}, WHOLE)
            return self.take(self.whole(node), demand, shape_of(node))
        moved = tuple(entry for entry in demand if entry not in how.rest)
        return self.take(self.copy(node, how.operands, moved), how.rest, shape_of(node))

    def copy(self, node: fx.Node, wanted: Mapping[int, Demand], demand: Demand) -> fx.Node:
        """The operation on parts of its operands, whose output is what is demanded."""
        if node.target in RESHAPES:
            sizes = dict(enumerate(shape_of(node))) | {axis: pick.size for axis, pick in demand}
            shape = [size if is_static(size) else -1 for size in sizes.values()]
            if shape.count(-1) <= 1:
                # A view may need another layout in memory than a part of its operand has.
                return self.call(aten.reshape.default, (self.done[node.args[0], wanted.get(0, WHOLE)], shape))  # type: ignore[index]
        arguments: list[Any] = [
            self.done[operand, wanted.get(position, WHOLE)]
            if isinstance(operand, fx.Node)
            else fx.map_arg(operand, self.whole)
            for position, operand in enumerate(operands(node))
        ]
        if node.target is aten.cat.default:
            arguments = [arguments, *node.args[1:]]
        return self.call(node.target, tuple(arguments), fx.map_arg(node.kwargs, self.whole))

    def take(self, node: fx.Node, demand: Demand, shape: tuple) -> fx.Node:
        """Slices first, which copy nothing, then means, and last what has to be gathered."""
        for axis, pick in sorted(demand, key=lambda entry: (not entry[1].is_slice, entry[1].mean)):
            if not pick.is_slice:
                indices = self.constant(torch.tensor(pick.indices, device=self.device), "indices")
                node = self.call(aten.index_select.default, (node, axis, indices))
            elif len(pick.indices) < shape[axis]:
                node = self.call(aten.slice.Tensor, (node, axis, pick.indices[0], pick.indices[-1] + 1))
            if pick.mean:
                node = self.call(aten.mean.dim, (node, [axis], True))
        return node

    @property
    def device(self) -> torch.device:
        return next((value.device for value in self.given.values()), torch.device("cpu"))

    def call(self, target: Any, args: tuple, kwargs: Any = None) -> fx.Node:
        inputs: list[Any] = []
        fx.map_arg((args, kwargs or {}), inputs.append)
        fixed = isinstance(target, torch._ops.OpOverload) and all(node.op == "get_attr" for node in inputs)
        if fixed and torch.Tag.nondeterministic_seeded not in target.tags:
            known: Any = fx.map_arg((args, kwargs or {}), lambda node: self.constants[str(node.target)])  # type: ignore[arg-type, return-value]
            value = target(*known[0], **known[1])
            if isinstance(value, Tensor):
                return self.constant(value.detach(), inputs[0].target if inputs else "constant")
        return self.graph.call_function(target, args, dict(kwargs or {}))

    def constant(self, value: Tensor, name: str) -> fx.Node:
        free = name
        while free in self.constants:
            free = f"{name}_{len(self.constants)}"
        self.constants[free] = value
        return self.graph.create_node("get_attr", free)
