"""Architectures that say themselves where their units are."""

import pytest
import torch
from torch import nn

from dna_probe.backbones import families, open_backbone
from dna_probe.backbones.checking import check_backbone
from dna_probe.backbones.families import Family, register_family
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing

from .zoo import TokenBlock, TokenModel


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(families, "_REGISTERED", [])


def opened(**said):
    register_family(Family("TokenModel", **{"layers": "trunk.*", **said}))
    torch.manual_seed(0)
    return open_backbone(TokenModel(), preprocessing=Preprocessing(input_size=(32, 32)))


def test_what_a_family_says_counts():
    backbone = opened(mlp="up.output", prefix_tokens=0, class_token=False)
    assert backbone.mlp(1).module == "trunk.1.up" and backbone.mlp(1).side == "output" and backbone.mlp(1).width == 48
    assert backbone.num_prefix_tokens == 0 and not backbone.layers[0].class_token
    assert list(backbone.sites) == [
        name for layer in range(3) for name in (f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_resid_post")
    ]
    assert all(check.verdict != "no" for check in check_backbone(backbone))


def test_what_it_leaves_out_is_found_by_what_fires():
    backbone = opened()
    assert backbone.mlp(0).module == "trunk.0.down" and backbone.num_prefix_tokens == 1 and backbone.grid == (4, 4)


def test_some_layers_alone():
    assert [site.module for site in opened(layers="trunk.[02]").layers] == ["trunk.0", "trunk.2"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"layers": "stem.*"}, r"No layer of TokenModel is called 'stem\.\*'"),
        ({"mlp": "up"}, "'up' is no mlp site of trunk.0"),
        ({"heads": "mixer.input"}, "'mixer.input' is no heads site of trunk.0"),
        (
            {"pattern": "mix.output"},
            r"'mix.output' of trunk.0 cannot be its pattern. It has the shape \(2, 1, 24\). Name what .*queries, keys",
        ),
        (
            {"heads": "mix.input"},
            r"'mix.input' of trunk.0 cannot be its heads. .*\(2, 1, 24\), and num_heads is 0. .* that divide the width",
        ),
        ({"heads": "mix.input", "num_heads": 7}, "cannot be its heads. .* and num_heads is 7"),
    ],
)
def test_what_is_not_there_is_told(said, told):
    with pytest.raises(BackboneError, match=told):
        opened(**said)


def test_what_is_returned_beside_another_tensor_is_read_where_it_is(monkeypatch):
    """The first tensor has no batch axis: the second one is meant."""

    class Beside(nn.Linear):
        def forward(self, x):
            return torch.zeros(7), super().forward(x)

    class Block(TokenBlock):
        def forward(self, x):
            return x + self.down(self.up(x)[1])

    model = TokenModel()
    model.trunk = nn.ModuleList(Block(24) for _ in range(3))
    for block in model.trunk:
        block.up = Beside(24, 48)
    register_family(Family("TokenModel", "trunk.*", mlp="up.output"))
    backbone = open_backbone(model)
    assert (backbone.mlp(1).part, backbone.mlp(1).width) == (1, 48)
    samples = torch.from_numpy(backbone.preprocessing.trial(2))
    name = backbone.mlp(1).name
    assert backbone.capture(samples, name)[name].shape == (2, 17, 48)


def test_a_family_may_know_its_models_by_more_than_their_name():
    register_family(Family(lambda module: hasattr(module, "trunk"), layers="trunk.0"))
    assert open_backbone(TokenModel(), preprocessing=Preprocessing(input_size=(32, 32))).depth == 1


class TestChecking:
    def test_a_broken_promise_is_told(self):
        class Leaky(TokenModel):
            def forward(self, x):
                return super().forward(x - x.mean(0, keepdim=True) * 3)

        backbone = open_backbone(Leaky(), preprocessing=Preprocessing(input_size=(32, 32)))
        found = {check.promise: check.verdict for check in check_backbone(backbone)}
        assert found["samples do not leak into each other"] == "no"
        assert found["attention patterns are probabilities"] == "not here"
        assert found["the model is left as it was found"] == found["layers are found"] == "yes"

    @pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError, NotImplementedError])
    def test_it_raises_nothing(self, error, monkeypatch):
        backbone = open_backbone(TokenModel(), preprocessing=Preprocessing(input_size=(32, 32)))

        def broken(*args, **kwargs):
            raise error("on purpose")

        monkeypatch.setattr(backbone, "capture", broken)
        found = [check for check in check_backbone(backbone) if check.verdict == "no"]
        assert len(found) >= 4 and "on purpose" in found[0].told
