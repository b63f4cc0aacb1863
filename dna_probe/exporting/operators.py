"""Operations that torch's exporter does not know how to say in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def translations() -> dict[Callable, Callable]:
    """What to write for them, for ``torch.onnx.export``."""
    import torch

    return {torch.ops.aten.searchsorted.Tensor: _search_sorted}


def _search_sorted(
    sorted_sequence: Any, self: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter=None
) -> Any:
    """Binary search in one sorted row of known length, a step for each bit of the position."""
    from onnx import TensorProto
    from onnxscript import opset20 as op

    if len(sorted_sequence.shape) != 1 or sorter is not None:
        raise NotImplementedError("searchsorted in other than one sorted row")
    size = int(sorted_sequence.shape[0])
    bits = size.bit_length()
    # Filled up to a power of two, so that no step leads out of it.
    missing = op.Constant(value_floats=[float("inf")] * (2**bits - size))
    row = op.Concat(sorted_sequence, op.CastLike(missing, sorted_sequence), axis=0)
    position = op.Expand(op.Constant(value_int=0), op.Shape(self))
    for bit in reversed(range(bits)):
        ahead = op.Gather(row, op.Add(position, op.Constant(value_int=2**bit - 1)), axis=0)
        beyond = op.LessOrEqual(ahead, self) if right or side == "right" else op.Less(ahead, self)
        position = op.Where(beyond, op.Add(position, op.Constant(value_int=2**bit)), position)
    position = op.Min(position, op.Constant(value_int=size))
    return op.Cast(position, to=TensorProto.INT32) if out_int32 else position
