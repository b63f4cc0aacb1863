"""Where a selection or a mean on the output of an operation can be taken of its input instead, for ``narrowing``.

A selection commutes with every operation that treats the axis entry by entry, a mean with those that are affine along
it as well. An operation without a rule is computed in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Pick:
    """What is wanted along an axis: the entries at some indices, or the mean of them as an axis of one entry."""

    indices: tuple[int, ...]
    mean: bool = False

    @property
    def size(self) -> int:
        return 1 if self.mean else len(self.indices)

    @property
    def is_slice(self) -> bool:
        return self.indices == tuple(range(self.indices[0], self.indices[-1] + 1))


# Position of an argument -> (axis of it, pick). Arguments that are not named are needed in full.
Moves = dict[int, list[tuple[int, Pick]]]
# Of an operation, an axis of its output, and a pick there; None where it has to be taken of the output.
Rule = Callable[[fx.Node, int, Pick], Moves | None]
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
_RULES: dict[Any, Rule] = {}


def rule_of(node: fx.Node) -> Rule | None:
    rule = _RULES.get(node.target)
    return _pointwise if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()) else rule


def given(node: Any) -> dict[str, Any]:
    """The arguments of an operation by the names in its schema, defaults filled in."""
    found = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = (
            node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, default)
        )
    return found


def operands(node: Any) -> tuple[Any, ...]:
    """The arguments that moves are counted in: the pieces of a concatenation, else all."""
    return tuple(node.args[0]) if node.target is aten.cat.default else node.args


def shape_of(node: Any) -> tuple:
    """Sizes of what a node gives; () for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def is_static(size: Any) -> bool:
    return isinstance(size, int)


def _rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.neg.default, aten.clone.default)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


def _pointwise(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """Entry by entry, with broadcasting. A mean goes to all terms of a sum, and to the one factor that varies."""
    rank, moves = len(shape_of(node)), Moves()
    for position, argument in enumerate(node.args):
        shape = shape_of(argument)
        own = axis - rank + len(shape)
        if own >= 0 and shape[own] != 1:
            moves[position] = [(own, pick)]
    if not pick.mean or node.target in _SUMS:
        return moves
    single = node.target in _PRODUCTS and len(moves) == 1
    return moves if single or (node.target in _QUOTIENTS and list(moves) == [0]) else None


@_rule(aten.linear.default)
def _linear(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    if axis < len(shape_of(node)) - 1:
        return {0: [(axis, pick)]}
    return None if pick.mean else _weights(node, pick)


def _weights(node: fx.Node, pick: Pick) -> Moves:
    """Rows of weight and bias."""
    return {position: [(0, pick)] for position in (1, 2) if node.args[position : position + 1] not in ((), (None,))}


@_rule(aten.matmul.default, aten.bmm.default, aten.mm.default)
def _product(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    rank = len(shape_of(node))
    if any(len(shape_of(factor)) != rank for factor in node.args):
        return None
    if axis >= rank - 2:
        return {axis - rank + 2: [(axis, pick)]}
    return None if pick.mean else _pointwise(node, axis, pick)


@_rule(aten.scaled_dot_product_attention.default)
def _attention(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """A token of the output needs its own query, and every key and value."""
    options, shape = given(node), shape_of(node)
    rank = len(shape)
    if pick.mean or options["is_causal"] or options.get("enable_gqa"):
        return None
    if axis == rank - 1:
        return {2: [(axis, pick)]}
    positions = (0,) if axis == rank - 2 else (0, 1, 2)
    if any(len(shape_of(a)) != rank or shape_of(a)[axis] != shape[axis] for a in (node.args[p] for p in positions)):
        return None
    moves: Moves = {position: [(axis, pick)] for position in positions}
    mask = shape_of(options["attn_mask"])
    own = axis - rank + len(mask)
    if mask and own >= 0 and mask[own] != 1:
        moves[3] = [(own, pick)]
    return moves


@_rule(*(getattr(aten, name).default for name in ("layer_norm", "rms_norm") if hasattr(aten, name)))
def _norm(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    before = len(shape_of(node)) - len(given(node)["normalized_shape"])
    return {0: [(axis, pick)]} if not pick.mean and axis < before else None


@_rule(aten.softmax.int, aten._softmax.default)
def _softmax(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    return {0: [(axis, pick)]} if not pick.mean and axis != given(node)["dim"] % len(shape_of(node)) else None


@_rule(aten.batch_norm.default)
def _batch_norm(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """With stored statistics: affine in each channel."""
    if given(node)["training"]:
        return None
    if axis != 1:
        return {0: [(axis, pick)]}
    stored: Moves = {position: [(0, pick)] for position in range(1, 5) if node.args[position] is not None}
    return None if pick.mean else {0: [(1, pick)]} | stored


@_rule(aten.conv2d.default)
def _convolution(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """Some of its filters; where it looks at single positions, it is a linear map of each."""
    options = given(node)
    if axis == 1:
        return None if pick.mean or options["groups"] != 1 else _weights(node, pick)
    single = shape_of(options["weight"])[2:] == (1, 1) and not any(options["padding"]) and set(options["stride"]) == {1}
    return {0: [(axis, pick)]} if single else None


@_rule(aten.cat.default)
def _concatenation(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """Along another axis. A pick along this one is a part of a piece, or of all."""
    if axis == given(node)["dim"] % len(shape_of(node)):
        return None
    return {position: [(axis, pick)] for position in range(len(operands(node)))}


@_rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.var.correction)
def _reduction(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    options, rank = given(node), len(shape_of(node.args[0]))
    if pick.mean or not options["dim"]:
        return None
    over = {a % rank for a in options["dim"]}
    kept = [a for a in range(rank) if options["keepdim"] or a not in over]
    return None if kept[axis] in over else {0: [(kept[axis], pick)]}


@_rule(aten.permute.default)
def _permutation(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    return {0: [(given(node)["dims"][axis] % len(shape_of(node)), pick)]}


@_rule(aten.transpose.int)
def _transposition(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    options, order = given(node), list(range(len(shape_of(node))))
    a, b = options["dim0"], options["dim1"]
    order[a], order[b] = order[b], order[a]
    return {0: [(order[axis], pick)]}


@_rule(aten.unsqueeze.default)
def _unsqueezing(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    added = given(node)["dim"] % len(shape_of(node))
    return None if axis == added else {0: [(axis - (axis > added), pick)]}


@_rule(aten.squeeze.dim, aten.squeeze.dims)
def _squeezing(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    shape, axes = shape_of(node.args[0]), given(node)["dim"]
    over = {a % len(shape) for a in ([axes] if isinstance(axes, int) else axes)}
    kept = [a for a in range(len(shape)) if a not in over or shape[a] != 1]
    return {0: [(kept[axis], pick)]}


@_rule(*RESHAPES)
def _reshape(node: fx.Node, axis: int, pick: Pick) -> Moves | None:
    """Along an axis that is kept, split into several, or merged of several."""
    inner, outer = shape_of(node.args[0]), shape_of(node)
    for source, goal in _groups(inner, outer):
        if axis not in goal:
            continue
        if len(source) == len(goal) == 1:
            return {0: [(source[0], pick)]}
        if len(source) == 1 and not pick.mean:
            sizes = [outer[a] for a in goal]
            return {0: [(source[0], _ravelled(pick, goal.index(axis), sizes))]}
        if len(goal) == 1:
            picks = _unravelled(pick, [inner[a] for a in source])
            return None if picks is None else {0: list(zip(source, picks, strict=True))}
    return None


def _ravelled(pick: Pick, place: int, sizes: Sequence[int]) -> Pick:
    """Entries of an axis that is split into several, from a pick along one of these."""
    before, after = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    rows = (outer * sizes[place] + index for outer in range(before) for index in pick.indices)
    return Pick(tuple(row * after + inner for row in rows for inner in range(after)))


def _unravelled(pick: Pick, sizes: Sequence[int]) -> list[Pick] | None:
    """A pick along an axis that was merged of several as one pick along each of these, or None if it is none such."""
    wanted: list[list[int]] = [[] for _ in sizes]
    for index in pick.indices:
        for entries, size in zip(reversed(wanted), reversed(sizes), strict=True):
            index, entry = divmod(index, size)
            if entry not in entries:
                entries.append(entry)
    flat = [0]
    for entries, size in zip(wanted, sizes, strict=True):
        flat = [base * size + entry for base in flat for entry in entries]
    return [Pick(tuple(entries), pick.mean) for entries in wanted] if tuple(flat) == pick.indices else None


def _groups(inner: tuple, outer: tuple) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes that hold the same entries; none where the batch is mixed with other axes."""
    if not inner or not outer or not all(is_static(size) and size for size in (*inner[1:], *outer[1:])):
        return
    first = 0 if is_static(inner[0]) and is_static(outer[0]) else 1
    if first and (is_static(inner[0]) or is_static(outer[0]) or inner[0].node.expr != outer[0].node.expr):
        return
    i = j = first
    while i < len(inner) and j < len(outer):
        source, goal, left, right = [i], [j], inner[i], outer[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                source.append(i)
                left *= inner[i]
                i += 1
            else:
                goal.append(j)
                right *= outer[j]
                j += 1
        yield source, goal
