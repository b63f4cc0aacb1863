"""The hook layer on its own: containers, edits, stops, switches."""

from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from dna_probe.errors import BackboneError, SiteError
from dna_probe.hooks import attached, eager_attention, frozen, nth_tensor, refuse_compiled, unwrap
from dna_probe.sites import Site


@dataclass(frozen=True)
class Frozen:
    note: str
    value: torch.Tensor


Pair = namedtuple("Pair", "value rest")


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


class Model(nn.Module):
    """Calls its second layer twice and its third by keyword; the fourth never."""

    def __init__(self, wrap=lambda x: x, take=lambda x: x):
        super().__init__()
        self.first, self.take = Returns(wrap), take
        self.twice, self.keyword, self.never = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = self.take(self.first(x))
        return self.keyword(input=self.twice(self.twice(x).relu_()))


def site(name: str, side: str = "output") -> Site:
    return Site(name, "residual", 0, name, side, "vector", 4)


SITES = {name: site(name) for name in ("first", "twice", "keyword", "never")}
CONTAINERS = {
    "tensor": (lambda x: x, lambda x: x),
    "tuple": (lambda x: (None, x, 1), lambda out: out[1]),
    "list": (lambda x: [x, 2], lambda out: out[0]),
    "namedtuple": (lambda x: Pair(x, "rest"), lambda out: out.value),
    "dict": (lambda x: {"note": "n", "value": x}, lambda out: out["value"]),
    "ordered": (lambda x: OrderedDict(value=x), lambda out: out["value"]),
    "frozen dataclass": (lambda x: Frozen("n", x), lambda out: out.value),
}


@pytest.fixture(params=CONTAINERS.values(), ids=CONTAINERS)
def model(request):
    torch.manual_seed(0)
    return Model(*request.param)


def test_first_tensor_of_every_container_is_read_and_replaced(model):
    x = torch.randn(3, 4)
    seen = []
    with torch.no_grad():
        plain = model(x)
        with attached(model, SITES, {"first": lambda a: seen.append(a.clone())}, stop=False) as run:
            assert torch.equal(run(x), plain)
        assert torch.equal(seen[0], model.first.linear(x))
        with attached(model, SITES, {"first": lambda a: a * 0}, stop=False) as run:
            assert torch.equal(run(x), model.keyword(model.twice(model.twice(x * 0).relu())))
        assert torch.equal(model(x), plain)


PARTS = {
    "tuple": ((None, torch.zeros(1), 1, torch.ones(1)), lambda out: out[3]),
    "list": ([torch.zeros(1), "text", torch.ones(1)], lambda out: out[2]),
    "namedtuple": (Pair(torch.zeros(1), torch.ones(1)), lambda out: out.rest),
    "dict": ({"note": "n", "value": torch.zeros(1), "weights": torch.ones(1)}, lambda out: out["weights"]),
    "dataclass": (Frozen(torch.zeros(1), torch.ones(1)), lambda out: out.value),
}


@pytest.mark.parametrize(("value", "take"), PARTS.values(), ids=PARTS)
def test_any_tensor_of_a_container_is_read_and_replaced(value, take):
    class Gives(nn.Module):
        def forward(self, x):
            return value

    model, seen = Gives(), []
    sites = {"second": Site("second", "residual", 0, "", "output", "vector", 1, part=1)}
    with attached(model, sites, {"second": lambda a: seen.append(a.clone())}, stop=False) as run:
        assert run(torch.zeros(1)) is value
    assert seen == [torch.ones(1)] == [nth_tensor(value, 1)]
    with attached(model, sites, {"second": lambda a: a + 1}, stop=False) as run:
        edited = run(torch.zeros(1))
    assert take(edited) == 2 and take(value) == 1
    assert nth_tensor(edited, 0) is nth_tensor(value, 0)
    with pytest.raises(SiteError, match=r"holds 2 of the 3 tensors wanted. Choose another site"):
        nth_tensor(value, 2)


def test_first_call_only_and_keyword_inputs():
    model, x = Model(), torch.randn(3, 4)
    seen = {"twice": [], "keyword": []}
    sites = {"twice": site("twice"), "keyword": site("keyword", "input")}
    with (
        torch.no_grad(),
        attached(model, sites, {name: lambda a, n=name: seen[n].append(a.clone()) for name in sites}) as run,
    ):
        assert run(x) is None
        run(x)
    assert len(seen["twice"]) == len(seen["keyword"]) == 2
    torch.testing.assert_close(seen["twice"][0], model.twice(model.first(x)).detach())
    with torch.no_grad(), attached(model, sites, {"keyword": lambda a: a * 0}, stop=False) as run:
        torch.testing.assert_close(run(x), model.keyword.bias.expand(3, 2))


def test_stop_is_when_all_have_fired_whatever_the_order_of_names():
    model, x = Model(), torch.randn(1, 4)
    ran = []
    handle = model.keyword.register_forward_hook(lambda *_: ran.append(1))
    with attached(model, dict(reversed(SITES.items())), {"twice": lambda a: None, "first": lambda a: None}) as run:
        run(x)
    assert not ran
    handle.remove()


def test_sites_that_do_not_fire_are_an_error_not_an_empty_result():
    visit = {"first": lambda a: None, "never": lambda a: None}
    message = r"1 of 2 sites did not fire: never. Their modules were not called"
    with attached(Model(), SITES, visit) as run, pytest.raises(SiteError, match=message):
        run(torch.zeros(1, 4))
    with pytest.raises(SiteError, match=r"No sites were asked for"), attached(Model(), SITES, {}):
        pass
    message = r"Unknown site 'frist'. Did you mean 'first'"
    with pytest.raises(SiteError, match=message), attached(Model(), SITES, {"frist": lambda a: None}):
        pass


def test_outputs_without_tensor():
    with pytest.raises(SiteError, match=r"A hooked module takes or returns str, which holds no tensor"):
        nth_tensor("text", 0)
    with pytest.raises(SiteError, match=r"holds no tensor"):
        nth_tensor((1, None), 0)


def test_threads_with_a_context_each_read_what_is_theirs():
    """The second one runs as a whole between the first layer of the other and its second."""
    model, theirs, ours = Model(), {}, {}

    def kept(into, name):
        return lambda activation: into.update({name: activation.clone()})

    def other():
        visit = {name: kept(theirs, name) for name in ("first", "twice")}
        with torch.no_grad(), attached(model, SITES, visit, stop=False) as run:
            run(torch.ones(1, 4))

    def first(activation):
        ours["first"] = activation.clone()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(other).result()

    with torch.no_grad(), attached(model, SITES, {"first": first, "twice": kept(ours, "twice")}, stop=False) as run:
        run(torch.zeros(1, 4))
        expected = {name: model.first(torch.full((1, 4), value)) for name, value in (("ours", 0.0), ("theirs", 1.0))}
        for name, found in (("ours", ours), ("theirs", theirs)):
            assert torch.equal(found["first"], expected[name])
            assert torch.equal(found["twice"], model.twice(expected[name]))


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_hooks_are_removed_and_foreign_ones_stay(error):
    model = Model()
    foreign = [
        model.first.register_forward_hook(lambda *_: None),
        model.first.register_forward_pre_hook(lambda *_: None),
    ]

    def visit(activation):
        if error:
            raise error("on purpose")

    try:
        with attached(model, SITES, {"first": visit}) as run:
            run(torch.zeros(1, 4))
    except (ValueError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert sorted(hooks) == sorted(handle.id for handle in foreign)


def test_switches_come_back_one_by_one():
    class Attention(nn.Module):
        def __init__(self, switch):
            super().__init__()
            self.fused_attn = switch

    model = nn.Sequential(Attention(True), Attention(False), Attention(True), nn.Linear(2, 2), nn.Dropout())
    model[4].train()
    model[3].eval()
    model[3].bias.requires_grad_(False)
    for error in (None, RuntimeError, KeyboardInterrupt):
        try:
            with eager_attention(model), frozen(model):
                assert not any(module.fused_attn for module in model[:3])
                assert not any(module.training for module in model.modules())
                assert not any(parameter.requires_grad for parameter in model.parameters())
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert [module.fused_attn for module in model[:3]] == [True, False, True]
        assert [model[4].training, model[3].training] == [True, False]
        assert [model[3].weight.requires_grad, model[3].bias.requires_grad] == [True, False]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_switch_in_configurations_comes_back(error):
    """As in transformers: one configuration lies in another, and setting the outer one sets the inner one too."""

    class Configuration:
        sub_configs = ("inner",)

        def __init__(self, switch, inner=None):
            self.inner, self._switch = inner, switch

        @property
        def _attn_implementation(self):
            return self._switch

        @_attn_implementation.setter
        def _attn_implementation(self, value):
            self._switch = value
            if self.inner is not None:
                self.inner._attn_implementation = value

    outer = Configuration("sdpa", Configuration("flash_attention_2", Configuration("eager")))
    every = [outer, outer.inner, outer.inner.inner]
    model = nn.Sequential(nn.Linear(2, 2))
    model.config, model[0].config = outer, outer.inner
    try:
        with eager_attention(model):
            assert [part._attn_implementation for part in every] == ["eager"] * 3
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert [part._attn_implementation for part in every] == ["sdpa", "flash_attention_2", "eager"]


def test_inference_mode_is_left_inside_and_found_again_after():
    model = nn.Linear(2, 2)
    with torch.inference_mode():
        with frozen(model):
            assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
            assert not model(torch.zeros(1, 2)).is_inference()
        assert torch.is_inference_mode_enabled()
    with frozen(model):
        assert torch.is_grad_enabled()


def test_probabilities_that_were_used_already_cannot_be_edited():
    name = "blocks.0.attn.hook_pattern"
    beside = replace(site("first"), name=name, kind="pattern", part=1)
    model = Model(lambda x: (x, x.softmax(-1)), lambda out: out[0])
    message = r"hook_pattern cannot be edited. .* when it has used them. Edit blocks.0.attn.hook_z"
    with attached(model, {name: beside}, {name: torch.zeros_like}) as run, pytest.raises(SiteError, match=message):
        run(torch.zeros(1, 4))
    # A module that only makes them is another matter.
    alone = replace(beside, part=0)
    with attached(model, {name: alone}, {name: torch.zeros_like}, stop=False) as run:
        assert torch.equal(run(torch.ones(1, 4)), run(torch.zeros(1, 4)))


def test_wrappers():
    model = Model()
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(torch.compile(model))) is model
    refuse_compiled(model)
    model.first.compile()
    with pytest.raises(
        BackboneError, match=r"The part 'first' of the model was compiled in place. Hooks do not run inside"
    ):
        refuse_compiled(model)


@pytest.mark.parametrize("compile_", [torch.jit.script, lambda part: torch.jit.trace(part, torch.zeros(1, 4))])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_models_are_refused_as_such(compile_):
    part = compile_(nn.Linear(4, 4))
    with pytest.raises(BackboneError, match=r"^The model is a scripted or traced one .*load_state_dict"):
        refuse_compiled(part)
    with pytest.raises(BackboneError, match=r"^The part '0' of the model is a scripted or traced one"):
        refuse_compiled(nn.Sequential(part))
