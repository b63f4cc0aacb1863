"""The rules by themselves: a function is traced and narrowed, and must give the same numbers for less work."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dna_probe.narrowing import narrow
from dna_probe.trimming import trace

N, TOKENS, WIDTH, OUT = 3, 10, 8, 12
GRID = (WIDTH, 4, 4)
SEQUENCE = (TOKENS, WIDTH)


class Traced(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(OUT, WIDTH)), nn.Parameter(torch.randn(OUT))
        self.square, self.vector = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, 1, 1))
        self.register_buffer("chosen", torch.tensor([5, 1, 1]))
        self.register_buffer("mask", torch.randn(TOKENS, TOKENS))
        self.norm = nn.BatchNorm2d(WIDTH)
        self.norm.running_mean.copy_(torch.randn(WIDTH))
        self.eval()

    def forward(self, x):
        return self.function(self, x)

    def linear(self, x):
        return F.linear(x, self.weight, self.bias)

    def mix(self, x):
        return F.linear(x, self.square)

    def convolve(self, x):
        return self.norm(F.conv2d(x, self.kernel, self.vector))


def work(module, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


def narrowed(function, shape, **options):
    """The share of the work that is left, after the numbers are compared."""
    torch.manual_seed(0)
    module, x = Traced(function), torch.randn(N, *shape)
    with torch.no_grad():
        less = narrow(*trace(module, x), **options)
        for count in (N, 1):
            assert torch.allclose(less(x[:count]), module(x[:count]), rtol=1e-4, atol=1e-5)
    return work(less, x) / work(module, x)


def attend(m, x, **options):
    q, k, v = (a.reshape(x.shape[0], TOKENS, 2, 4).transpose(1, 2) for a in (m.mix(x), x, x))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).reshape(x.shape)


def all_and_one(y):
    return y.amax((1, 2)) + y[:, 0, 0]


def attend_openly(m, x):
    return ((m.mix(x) * 0.5) @ x.transpose(1, 2)).softmax(-1) @ x


MOVED = {
    "an output unit": (lambda m, x: m.linear(x)[..., 3], SEQUENCE, 1 / OUT),
    "units in any order, twice": (lambda m, x: m.linear(x).index_select(2, m.chosen), SEQUENCE, 3 / OUT),
    "a token": (lambda m, x: m.linear(x)[:, 4], SEQUENCE, 1 / TOKENS),
    "every third token": (lambda m, x: m.linear(x)[:, ::3], SEQUENCE, 4 / TOKENS),
    "the mean": (lambda m, x: m.linear(x).mean(1), SEQUENCE, 1 / TOKENS),
    "a unit of the mean": (lambda m, x: m.linear(x)[:, 1:].mean(1)[:, 2], SEQUENCE, 1 / TOKENS / OUT),
    "token and mean": (lambda m, x: m.linear(x)[:, 0] + m.linear(x)[:, 1:].mean(1), SEQUENCE, 1 / TOKENS),
    "a sum with a scaled branch": (lambda m, x: (x + m.vector * m.mix(x)).mean(1), SEQUENCE, 1 / TOKENS),
    "a quotient": (lambda m, x: (m.mix(x) / (1 + m.vector**2)).mean(1), SEQUENCE, 1 / TOKENS),
    "a token through an activation": (lambda m, x: m.mix(F.gelu(m.mix(x)))[:, 0], SEQUENCE, 1 / TOKENS),
    "a mean up to an activation": (lambda m, x: m.mix(F.gelu(m.mix(x))).mean(1), SEQUENCE, 0.5 + 0.5 / TOKENS),
    "a token through a norm": (lambda m, x: m.mix(F.layer_norm(m.mix(x), (WIDTH,)))[:, 0], SEQUENCE, 1 / TOKENS),
    "a unit up to a norm": (
        lambda m, x: m.mix(F.layer_norm(m.mix(x), (WIDTH,)))[..., 0],
        SEQUENCE,
        0.5 + 0.5 / WIDTH,
    ),
    "one of several": (lambda m, x: m.linear(x).reshape(-1, TOKENS, 3, 4)[:, :, 1], SEQUENCE, 1 / 3),
    "a chunk": (lambda m, x: m.linear(x).chunk(2, -1)[1], SEQUENCE, 1 / 2),
    "a maximum of some units": (lambda m, x: m.linear(x).amax(1)[:, 3:5], SEQUENCE, 2 / OUT),
    "a token of a concatenation": (
        lambda m, x: m.mix(torch.cat([x[:, :2], m.mix(x)[:, 2:]], 1))[:, 1],
        SEQUENCE,
        1 / (2 * TOKENS),
    ),
    "a unit of a concatenation of tokens": (
        lambda m, x: torch.cat([m.linear(x), m.linear(x + 1)], 1)[..., 0],
        SEQUENCE,
        1 / OUT,
    ),
    "a query": (lambda m, x: attend(m, x)[:, 0], SEQUENCE, 1 / TOKENS),
    "a query with a mask": (lambda m, x: attend(m, x, attn_mask=m.mask)[:, 0], SEQUENCE, 1 / TOKENS),
    "a query, openly": (lambda m, x: attend_openly(m, x)[:, 0], SEQUENCE, 1 / TOKENS),
    "a filter": (lambda m, x: m.convolve(x)[:, 2], GRID, 1 / WIDTH),
    "the mean of a picture": (lambda m, x: m.convolve(x).mean((2, 3)), GRID, 1 / 16),
    "the mean of a picture as tokens": (lambda m, x: m.convolve(x).flatten(2).transpose(1, 2).mean(1), GRID, 1 / 16),
    "a corner": (lambda m, x: m.convolve(x).flatten(2)[..., 5], GRID, 1 / 16),
}
KEPT = {
    "a mean of products": (lambda m, x: (m.mix(x) * x).mean(1), SEQUENCE),
    "a share over the tokens": (lambda m, x: m.mix(x).softmax(1)[:, 0], SEQUENCE),
    "a normalised unit": (lambda m, x: F.layer_norm(m.mix(x), (WIDTH,))[..., 0], SEQUENCE),
    "a reciprocal": (lambda m, x: (1 / (3 + m.mix(x).abs())).mean(1), SEQUENCE),
    "a token that is used with all": (lambda m, x: all_and_one(m.mix(x)), SEQUENCE),
    "a query that sees only the past": (lambda m, x: attend(m, x, is_causal=True)[:, 0], SEQUENCE),
    "tokens mixed with the batch": (lambda m, x: m.mix(x.reshape(-1, WIDTH)).reshape(x.shape)[:, 0], SEQUENCE),
    "filters over neighbours": (
        lambda m, x: F.conv2d(x, m.kernel.expand(-1, -1, 3, 3), padding=1).mean((2, 3)),
        GRID,
    ),
}


@pytest.mark.parametrize("function, shape, share", MOVED.values(), ids=MOVED)
def test_moved(function, shape, share):
    assert narrowed(function, shape) == pytest.approx(share)


@pytest.mark.parametrize("function, shape", KEPT.values(), ids=KEPT)
def test_kept(function, shape):
    assert narrowed(function, shape) == 1


def test_only_selections_or_nothing():
    def function(m, x):
        return torch.cat([m.linear(x).mean(1), m.linear(x + 1)[:, 0]], 1)

    assert narrowed(function, SEQUENCE) == pytest.approx(1 / TOKENS)
    assert narrowed(function, SEQUENCE, move=("selections",)) == pytest.approx((1 + 1 / TOKENS) / 2)
    assert narrowed(function, SEQUENCE, move=()) == 1


def test_what_is_not_read_falls_away_and_constants_are_computed_once():
    def function(m, x):
        m.linear(x).exp()
        return x @ (m.square @ m.square)

    module = Traced(function)
    less = narrow(*trace(module, torch.randn(N, *SEQUENCE)))
    calls = [node for node in less.graph.nodes if node.op == "call_function"]
    assert len(calls) == 1 and len(list(less.buffers())) + len(list(less.parameters())) == 1
