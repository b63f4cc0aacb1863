"""Weights of 8 bits in a graph in ONNX.

Linear maps are computed in 8 bits too, in blocks with a scale of their own on both sides (``MatMulNBits`` of
onnxruntime). One scale for all activations of a batch would be faster, but then the verdict on an image would depend on
the others of its batch, and a token with a huge activation, as large vision transformers have, would cost the rest its
precision. Convolutions are stored in 8 bits per output channel and computed as before: small networks lose most of what
a detector reads where their activations are rounded as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

BLOCK = 128
# Of the settings of onnxruntime this one computes in 8 bits.
_COMPUTE_INT8 = 4
# Smaller tensors are not worth it.
SMALLEST = 1024


def quantise(model: ModelProto) -> ModelProto:
    """The graph with the weights of its linear maps and convolutions in 8 bits; the model given is changed."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    # It tells of every node that it leaves alone.
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)
    weights = _weights(model)
    _store(model, [name for node, name in _reading(model, "Conv", weights) if _size(weights[name]) >= SMALLEST])
    # The classifier stays in double precision.
    precise = [node.name for node, name in _reading(model, "MatMul", _tensors(model)) if name not in weights]
    settings = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=_COMPUTE_INT8, bits=8, op_types_to_quantize=("MatMul",)
    )
    quantiser = MatMulNBitsQuantizer(model, nodes_to_exclude=precise, algo_config=settings)
    quantiser.process()
    return quantiser.model.model


def _tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _weights(model: ModelProto) -> dict[str, TensorProto]:
    """The tensors in single precision, by name."""
    from onnx import TensorProto

    return {name: tensor for name, tensor in _tensors(model).items() if tensor.data_type == TensorProto.FLOAT}


def _reading(model: ModelProto, kind: str, tensors: Mapping[str, TensorProto]) -> list[tuple[NodeProto, str]]:
    """The nodes of a kind whose second input is one of the tensors, and its name."""
    return [(node, node.input[1]) for node in model.graph.node if node.op_type == kind and node.input[1] in tensors]


def _store(model: ModelProto, names: Iterable[str]) -> None:
    """Put tensors down in 8 bits along their first axis, with what makes them whole again."""
    from onnx import helper, numpy_helper

    tensors = _tensors(model)
    for name in dict.fromkeys(names):
        values = numpy_helper.to_array(tensors[name])
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim))) / np.float32(127)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        whole = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        model.graph.initializer.remove(tensors[name])
        stored = [numpy_helper.from_array(whole, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
        model.graph.initializer.extend(stored)
        made = helper.make_node("DequantizeLinear", [one.name for one in stored], [name], name=f"{name}_float", axis=0)
        model.graph.node.insert(0, made)


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims))
