"""Layers of modules that follow no known naming: streams, pyramids, sequences, and what is refused."""

import pytest
import torch
from torch import nn

from dna_probe.backbones import open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.sites import Reading

from .test_huggingface import Sequences
from .zoo import TokenBlock, TokenModel, Wrapper

SIZE = Preprocessing((64, 64))


def modules_of(model: nn.Module) -> list[str]:
    return [site.module for site in Backbone(model, SIZE).layers]


def numbered(pattern: str, *counts: int) -> list[str]:
    return [pattern.format(stage, block) for stage, count in enumerate(counts) for block in range(count)]


class Added(nn.Module):
    """A residual branch and the sum behind it."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def convolution(before: int, width: int, stride: int = 1, maps: type[nn.Module] = nn.Conv2d) -> nn.Module:
    norm = nn.BatchNorm2d if maps is nn.Conv2d else nn.BatchNorm1d
    return nn.Sequential(maps(before, width, 3, stride, 1), norm(width), nn.ReLU(inplace=True))


class Pooled(nn.Module):
    """Layers one behind the other, then the mean over the image."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        for layer in self.children():
            for part in layer if isinstance(layer, nn.ModuleList) else [layer]:
                x = part(x)
        return x.flatten(2).mean(2)


class Stages(nn.Module):
    """Stages of blocks of tokens in lists of their own, as the first code of SegFormer and of PVT names them."""

    def __init__(self, *depths: int):
        super().__init__()
        for stage, depth in enumerate(depths):
            width, before = 8 * (stage + 1), 8 * stage or 3
            setattr(self, f"patches{stage}", nn.Conv2d(before, width, 2, 2))
            setattr(self, f"block{stage}", nn.ModuleList(Added(perceptron(width)) for _ in range(depth)))

    def forward(self, x):
        for stage in range(len(list(self.children())) // 2):
            x = getattr(self, f"patches{stage}")(x)
            shape, x = x.shape, x.flatten(2).transpose(1, 2)
            for block in getattr(self, f"block{stage}"):
                x = block(x)
            x = x.transpose(1, 2).reshape(shape)
        return x.mean((2, 3))


class TestStagesOfTokens:
    @pytest.mark.parametrize("depths", [(2, 2, 6, 2), (1, 1, 1)])
    def test_blocks_of_all_stages_are_layers(self, depths):
        assert modules_of(Stages(*depths)) == numbered("block{}.{}", *depths)

    def test_lists_inside_blocks_are_no_stages(self):
        class Mixture(TokenBlock):
            def __init__(self, width):
                super().__init__(width)
                self.experts = nn.ModuleList(perceptron(width) for _ in range(2))

            def forward(self, x):
                return super().forward(x) + sum(expert(x) for expert in self.experts)

        model = TokenModel()
        model.trunk = nn.ModuleList(Mixture(24) for _ in range(3))
        assert [site.module for site in open_backbone(model).layers] == ["trunk.0", "trunk.1", "trunk.2"]


class TestPyramids:
    stages = (("early", 8, 1), ("middle", 16, 5), ("late", 24, 1))

    def pyramid(self) -> dict[str, nn.Module]:
        before, made = 3, {}
        for name, width, more in self.stages:
            made[name] = nn.Sequential(convolution(before, width, 2), *(convolution(width, width) for _ in range(more)))
            before = width
        return made

    def test_a_long_stage_is_no_pyramid(self):
        names = [name for name, _, _ in self.stages]
        assert modules_of(Pooled(**self.pyramid())) == names
        assert modules_of(Wrapper(Pooled(**self.pyramid()))) == [f"backbone.{name}" for name in names]

    def test_stages_in_lists_that_never_run_are_taken_block_by_block(self):
        class Lists(nn.Module):
            def __init__(self, stages):
                super().__init__()
                self.block = nn.ModuleList(nn.ModuleList(stage) for stage in stages)

            def forward(self, x):
                for stage in self.block:
                    for block in stage:
                        x = block(x)
                return x.mean((2, 3))

        assert modules_of(Lists(self.pyramid().values())) == numbered("block.{}.{}", 2, 6, 2)

    def test_a_stem_is_no_pyramid(self):
        stem = nn.Sequential(convolution(3, 8, 2), convolution(8, 16, 2), convolution(16, 24, 2))
        blocks = nn.Sequential(*(Added(convolution(24, 24)) for _ in range(5)))
        assert modules_of(Pooled(stem=stem, blocks=blocks)) == [f"blocks.{k}" for k in range(5)]

    def test_the_layers_of_a_resnet_are_found_inside_a_wrapper(self):
        from torchvision.models import resnet18

        assert modules_of(Wrapper(resnet18())) == [f"backbone.layer{k}" for k in (1, 2, 3, 4)]


class TestBranches:
    def model(self, wrap, add: bool):
        class Pairs(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Conv2d(3, 24, 16, 16)
                pairs = ([wrap(perceptron(24)), wrap(nn.Sequential(perceptron(24)))] for _ in range(3))
                self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

            def forward(self, x):
                x = self.embed(x).flatten(2).transpose(1, 2)
                for pair in self.layers:
                    for part in pair:
                        x = x + part(x) if add else part(x)
                return x.mean(1)

        return Pairs()

    @pytest.mark.parametrize("wrap", [lambda part: part, lambda part: nn.Sequential(nn.LayerNorm(24), part)])
    def test_pairs_that_the_model_adds_to_the_stream_are_refused(self, wrap):
        message = r"The layers of Pairs add to the stream outside any module. What layers.0.0 and layers.0.1 return"
        with pytest.raises(BackboneError, match=rf"{message} .*Put each pair in a module of its own"):
            Backbone(self.model(wrap, add=True), SIZE)

    def test_pairs_that_add_by_themselves_are_layers(self):
        assert modules_of(self.model(Added, add=False)) == numbered("layers.{}.{}", 2, 2, 2)


class TestSequences:
    def opened(self, **layers: nn.Module) -> Backbone:
        return Backbone(Pooled(**layers), Sequences("audio", (1, 640)))

    @pytest.mark.parametrize("alone", [True, False])
    def test_maps_of_convolutions_over_time_hold_channels(self, alone):
        """Also where the stage is read at an activation, in which there is no convolution."""
        layers = {"first": convolution(1, 8, 4, nn.Conv1d), "second": convolution(8, 12, 4, nn.Conv1d)}
        parts = {f"{name}_{k}": part for name, layer in layers.items() for k, part in enumerate(layer)}
        backbone = self.opened(**parts if alone else layers)
        assert [(site.kind, site.layout, site.width) for site in backbone.layers] == [
            ("stage", "nchw", 8),
            ("stage", "nchw", 12),
        ]
        waves = torch.from_numpy(backbone.preprocessing.trial(3))
        captured = backbone.capture(waves, [site.name for site in backbone.layers])
        last = backbone.layers[-1]
        assert captured[last.name].shape == (3, 12, 40)
        expected = captured[last.name].mean(2)
        torch.testing.assert_close(Reading(last, "mean").reduce(captured[last.name]), expected)

    def test_a_stream_of_such_maps_is_no_stream_of_tokens(self):
        blocks = nn.ModuleList(Added(convolution(8, 8, maps=nn.Conv1d)) for _ in range(3))
        backbone = self.opened(stem=convolution(1, 8, 8, nn.Conv1d), blocks=blocks)
        assert [site.module for site in backbone.layers] == ["blocks.0", "blocks.1", "blocks.2"]
        assert {(site.layout, site.width) for site in backbone.layers} == {("nchw", 8)}


def test_one_layer_that_runs_again_and_again_is_refused():
    from .test_huggingface import TEXT, made

    model = made("AlbertModel", "AlbertConfig", **{**TEXT, "embedding_size": 8, "num_hidden_layers": 6})()
    message = r"AlbertModel runs its layer \S+ 6 times with the same weights. Hooks read its first call only"
    with pytest.raises(BackboneError, match=message):
        Backbone(model, Sequences("text", (9,)))


def test_blocks_may_share_a_part():
    model = TokenModel()
    for block in model.trunk:
        block.up = model.trunk[0].up
    assert [site.module for site in open_backbone(model).layers] == ["trunk.0", "trunk.1", "trunk.2"]
