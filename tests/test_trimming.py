import copy

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import dna_probe
from dna_probe import compiling, trimming
from dna_probe.backbones import open_backbone
from dna_probe.collection import Options
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.narrowing import narrow
from dna_probe.sites import Reading
from dna_probe.trimming import deviation, trace, trim

from .backbones.zoo import backbone_of, pixels_for
from .planted import images

SIDE, WIDTH = 32, 16


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.scale * self.mlp(self.norm2(x))


class Small(nn.Module):
    """A vision transformer of three blocks with layer scale, and a head."""

    def __init__(self):
        super().__init__()
        self.image_size = SIDE
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


@pytest.fixture(scope="module")
def backbone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_backbone(Small(), preprocessing=Preprocessing(input_size=(SIDE, SIDE)))


def reading(backbone, layer, reduction, kind="resid"):
    site = {"resid": backbone.layers[layer], "mlp": backbone.mlp(layer)}[kind]
    return Reading(site, reduction)


def plain(backbone, units, pixels):
    """The units as hooks read them."""
    found = {}

    def visit(name):
        own = [r for r in units if r.site.name == name]
        return lambda activation: found.update({r: r.reduce(activation).float() for r in own})

    with torch.no_grad(), backbone.visiting({r.site.name: visit(r.site.name) for r in units}) as run:
        run(pixels)
    return torch.cat([found[r][:, index] for r, index in units.items()], 1)


def multiplications(module, pixels):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(pixels)
    return counter.get_total_flops() / 2


def weight_shapes(module):
    return [tuple(getattr(module, n.args[1].target).shape) for n in linears(module)]


def linears(module):
    return [n for n in module.graph.nodes if n.target is torch.ops.aten.linear.default]


READINGS = {
    "class token": [(2, "cls")],
    "mean": [(2, "mean")],
    "both, of three layers": [(0, "cls"), (0, "mean"), (1, "mean"), (2, "cls"), (2, "mean")],
    "hidden units": [(1, "cls"), (2, "cls", "mlp"), (2, "mean", "mlp")],
    "what needs all patches": [(2, "max"), (2, "std"), (2, "top")],
    "an early layer": [(0, "mean"), (0, "cls")],
}


class TestTrim:
    @pytest.mark.parametrize("wanted", READINGS.values(), ids=READINGS)
    def test_it_gives_the_same_units(self, wanted, backbone):
        units = {reading(backbone, *place): [7, 2, 11] for place in wanted}
        trimmed = trim(backbone, units)
        assert trimmed.meta["moved"] == ("selections", "means")
        for count in (1, 3, 16):
            pixels = pixels_for(backbone, count)
            with torch.no_grad():
                found = trimmed(pixels)
            assert found.shape == (count, 3 * len(units)) and found.dtype == torch.float32
            assert deviation(found, plain(backbone, units, pixels), units) < 2e-6

    def test_the_class_token_alone_needs_one_query_and_one_row_of_the_last_block(self, backbone):
        trimmed = trim(backbone, {reading(backbone, 2, "cls"): [3, 5]})
        # The last block: query, keys, values, projection, up, and the two units' rows of down.
        assert weight_shapes(trimmed)[-6:] == [(16, 16), (16, 16), (16, 16), (16, 16), (64, 16), (2, 64)]
        square, tokens = WIDTH**2, 17
        embedding = 16 * WIDTH * 3 * 8 * 8
        block = 12 * square * tokens + 2 * WIDTH * tokens**2
        last = 2 * square * tokens + 2 * square + 2 * WIDTH * tokens + 4 * square + 2 * 4 * WIDTH
        assert multiplications(trimmed, pixels_for(backbone, 1)) == embedding + 2 * block + last

    def test_the_mean_of_a_linear_map_is_the_map_of_the_mean(self, backbone):
        units = {reading(backbone, 2, "cls"): [3], reading(backbone, 2, "mean"): [1, 9]}
        trimmed = trim(backbone, units)
        assert sorted(weight_shapes(trimmed)[-2:]) == [(1, 64), (2, 64)]
        # One row each, where the model has 17.
        last = linears(trimmed)[-2:]
        sizes = fx.Interpreter(trimmed)
        seen = {}
        sizes.run_node = lambda n: seen.setdefault(n.name, fx.Interpreter.run_node(sizes, n))
        with torch.no_grad():
            sizes.run(pixels_for(backbone, 2))
        assert all(seen[node.name].shape[:2] == (2, 1) for node in last)

    def test_what_needs_all_patches_is_cut_to_its_units(self, backbone):
        trimmed = trim(backbone, {reading(backbone, 2, "max"): [3, 5], reading(backbone, 2, "std"): [8]})
        assert sorted(weight_shapes(trimmed)[-2:]) == [(1, 64), (2, 64)]

    def test_a_layer_that_is_read_and_used_stays_whole(self, backbone):
        units = {reading(backbone, 0, "cls"): [3], reading(backbone, 2, "cls"): [3]}
        assert weight_shapes(trim(backbone, units))[3] == (WIDTH, 4 * WIDTH)

    def test_weights_are_shared_and_the_model_is_as_it_was(self, backbone):
        model = backbone.module
        before = {name: value.clone() for name, value in model.state_dict().items()}
        flags = [(m.training, dict(m._forward_hooks), set(vars(m))) for m in model.modules()]
        gradients = [p.requires_grad for p in model.parameters()]
        trimmed = trim(backbone, {reading(backbone, 2, "mean"): [3]})
        assert flags == [(m.training, dict(m._forward_hooks), set(vars(m))) for m in model.modules()]
        assert gradients == [p.requires_grad for p in model.parameters()]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        shared = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
        kept = {name: value for name, value in trimmed.state_dict().items() if "indices" not in name}
        assert all(value.untyped_storage().data_ptr() in shared for value in kept.values())
        assert not any("head" in name for name in kept)

    def test_it_can_be_composed_and_exported(self, backbone):
        units = {reading(backbone, 2, "mean"): [3, 4]}
        whole = nn.Sequential(trim(backbone, units), nn.Linear(2, 1))
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(whole, (pixels_for(backbone, 2),), dynamic_shapes=shapes, strict=False)
        pixels = pixels_for(backbone, 5)
        assert torch.allclose(program.module()(pixels), whole(pixels))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_kept(self, dtype, backbone):
        half = open_backbone(copy.deepcopy(backbone.module).to(dtype), preprocessing=backbone.preprocessing)
        units = {Reading(half.layers[2], "mean"): [3], Reading(half.layers[2], "cls"): [4]}
        trimmed = trim(half, units)
        assert trimmed.meta["moved"] == ()
        assert {value.dtype for value in trimmed.parameters()} == {dtype}
        pixels = pixels_for(half, 4)
        with torch.no_grad():
            assert torch.equal(trimmed(pixels), plain(half, units, pixels))

    @pytest.mark.parametrize("name", ["dinov2_registers", "resnet18"])
    def test_other_families(self, name):
        known = backbone_of(name)
        units = {Reading(known.layers[0], "mean"): [1], Reading(known.layers[-1], "mean"): [5, 0]}
        if known.layers[-1].class_token:
            units[Reading(known.layers[-1], "cls")] = [2]
        pixels = pixels_for(known, 4)
        with torch.no_grad():
            assert deviation(trim(known, units)(pixels), plain(known, units, pixels), units) < 2e-6


class FixedBatch(Small):
    def forward(self, x):
        return super().forward(x.reshape(len(x), 3, SIDE, SIDE))


class TestRefusals:
    def test_a_forward_that_fixes_the_batch_size(self):
        fixed = open_backbone(FixedBatch(), preprocessing=Preprocessing(input_size=(SIDE, SIDE)))
        with pytest.raises(BackboneError, match=r"cannot be trimmed.*fixes the batch size, as len\(x\) does"):
            trim(fixed, {reading(fixed, 2, "mean"): [3]})

    def test_texts(self, backbone, monkeypatch):
        monkeypatch.setattr(type(backbone.preprocessing), "modality", "text")
        with pytest.raises(BackboneError, match="It takes text, of any length"):
            trim(backbone, {reading(backbone, 2, "mean"): [3]})

    def test_numbers_that_deviate_are_never_used(self, backbone, monkeypatch):
        monkeypatch.setattr(trimming, "TOLERANCE", -1.0)
        with pytest.raises(BackboneError, match="Its trace deviates by"):
            trim(backbone, {reading(backbone, 2, "mean"): [3]})

    def test_a_move_that_fails_leaves_the_others(self, backbone, monkeypatch):
        def narrow(graph, constants, move):
            if "means" in move:
                raise NotImplementedError("mean(): could not infer output dtype")
            return known(graph, constants, move)

        known = trimming.narrow
        monkeypatch.setattr(trimming, "narrow", narrow)
        assert trim(backbone, {reading(backbone, 2, "mean"): [3]}).meta["moved"] == ("selections",)

    def test_deviation(self):
        units = {"a": [0, 1], "b": [0]}
        expected = torch.tensor([[1.0, 0.0, 1e3], [3.0, 0.0, 1e3]])
        assert deviation(expected, expected, units) == 0
        assert deviation(expected + torch.tensor([0.0, 0.0, 1.0]), expected, units) == pytest.approx(1e-3)
        # A unit that is silent on the batch is held to its reading's rms, not to nothing.
        assert deviation(expected + torch.tensor([0.0, 1e-3, 0.0]), expected, units) == pytest.approx(6.3e-4, rel=0.01)
        assert deviation(expected * torch.nan, expected, units) == torch.inf


@pytest.fixture(scope="module")
def detector(backbone):
    return dna_probe.fit(backbone, images(12), layers=[site.name for site in backbone.layers], views=())


@pytest.fixture(scope="module")
def compiled(detector):
    return detector.compile()


@pytest.fixture(scope="module")
def pictures():
    return images(8, seed=3)[0]


class TestCompile:
    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    def test_same_probabilities(self, batch_size, detector, compiled, pictures):
        options = Options(batch_size=batch_size)
        assert compiled.trimmed.reader is not None and compiled.units == detector.units
        change = compiled.predict_proba(pictures, options) - detector.predict_proba(pictures, options)
        assert np.abs(change).max() < 1e-6

    def test_it_says_what_was_done(self, detector, compiled):
        assert detector.trimmed is None and "trimmed" not in repr(detector)
        assert "; trimmed: cut, selections and means moved" in repr(compiled)

    def test_unreadable_images_keep_their_place(self, compiled, pictures, tmp_path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        first, second, third = compiled.judge([pictures[0], broken, pictures[1]])
        assert first.probability is not None and third.probability is not None
        assert second.probability is None and second.path.endswith("broken.png") and second.error

    def test_none_readable(self, compiled, tmp_path):
        (broken := tmp_path / "broken.png").write_bytes(b"no image")
        assert [p.probability for p in compiled.judge([broken])] == [None]

    def test_the_cache_keeps_whole_readings(self, detector, compiled, pictures, tmp_path):
        options = Options(cache=tmp_path)
        first = compiled.predict_proba(pictures, options)
        assert np.array_equal(detector.predict_proba(pictures, options), first)

    def test_saved_detectors_load_and_compile(self, compiled, backbone, pictures, tmp_path):
        loaded = dna_probe.load(compiled.save(tmp_path / "detector"), model=backbone)
        assert loaded.trimmed is None
        assert np.abs(loaded.compile().predict_proba(pictures) - compiled.predict_proba(pictures)).max() < 1e-6

    def test_a_copy_reads_the_same(self, compiled, pictures):
        again = copy.deepcopy(compiled.trimmed.reader)
        pixels = torch.randn(2, 3, SIDE, SIDE)
        with torch.no_grad():
            assert torch.equal(again(pixels), compiled.trimmed.reader(pixels))

    def test_what_cannot_be_traced_works_as_before(self, detector, pictures):
        fixed = open_backbone(FixedBatch(), preprocessing=detector.backbone.preprocessing)
        fixed.module.load_state_dict(detector.backbone.module.state_dict())
        plain_detector = dna_probe.detector.replace(detector, backbone=fixed)
        tried = plain_detector.compile()
        assert tried.trimmed.reader is None
        assert "not trimmed: It cannot be traced: its forward pass fixes the batch size" in repr(tried)
        assert np.array_equal(tried.predict_proba(pictures), plain_detector.predict_proba(pictures))

    def test_units_that_are_not_finite_are_an_error(self, compiled, pictures):
        class Overflow(nn.Module):
            def forward(self, x):
                return torch.full((len(x), len(compiled.units)), torch.inf)

        broken = dna_probe.detector.replace(compiled, trimmed=compiling.Trimmed(Overflow(), ""))
        with pytest.raises(dna_probe.errors.NumericalError, match="unit values are NaN or infinite"):
            broken.predict_proba(pictures)


def called(module):
    return [str(node.target).removeprefix("aten.") for node in module.graph.nodes if node.op == "call_function"]


class TestInPlace:
    def narrowed(self, function, *shape):
        class It(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(8, 8)

            def forward(self, x):
                return function(self.linear, x)

        module, x = It().eval(), torch.randn(3, *shape)
        with torch.no_grad():
            return narrow(*trace(module, x)), x

    @pytest.mark.parametrize(
        "function, expected",
        [
            (lambda f, x: F.gelu(f(x)), ["linear.default", "gelu_.default"]),
            (lambda f, x: x + f(x), ["linear.default", "add_.Tensor"]),
            (lambda f, x: x - f(x), ["linear.default", "sub.Tensor"]),
            (lambda f, x: f(x) / 2, ["linear.default", "div_.Tensor"]),
            # Used again, the input itself, and too small for the result.
            (lambda f, x: torch.cat([F.relu(y := f(x)), y]), ["linear.default", "relu.default", "cat.default"]),
            (lambda f, x: F.relu(x), ["relu.default"]),
            (lambda f, x: f(x[:, :1]) + x, ["slice.Tensor", "linear.default", "add.Tensor"]),
        ],
    )
    def test_only_what_nothing_else_looks_at_is_written_over(self, function, expected):
        module, x = self.narrowed(function, 4, 8)
        before, weights = x.clone(), {name: value.clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            wanted = module(x)
            faster = compiling.in_place(module, x)
            assert called(faster) == expected
            assert torch.equal(faster(x), wanted) and torch.equal(x, before)
        assert all(torch.equal(value, weights[name]) for name, value in faster.state_dict().items())


def test_a_faster_way_that_deviates_is_not_taken(detector, monkeypatch):
    def wrong(module):
        graph = fx.Graph()
        graph.output(graph.call_function(torch.mul, (graph.graph_copy(module.graph, {}), 1.0001)))
        return fx.GraphModule(module, graph)

    monkeypatch.setattr(compiling, "with_onednn", wrong)
    assert detector.compile().trimmed.note == "trimmed: cut, selections and means moved"


def test_a_machine_without_onednn(detector, monkeypatch):
    def absent(module):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(compiling, "with_onednn", absent)
    assert detector.compile().trimmed.note == "trimmed: cut, selections and means moved"
