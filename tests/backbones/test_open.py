"""Opening a backbone: every source, every way to get it wrong, and the advice that comes with it."""

import time
from copy import deepcopy

import pytest
import torch
from torch import nn

from dna_probe.backbones import download, list_backbones, open_backbone
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing

from .zoo import ConvModel, TokenBlock, TokenModel, Wrapper, backbone_of, model_of, pixels_for


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_timm_name_with_random_weights_is_the_same_every_time():
    noise = torch.random.get_rng_state()
    first = open_backbone("test_vit", random_weights=True)
    assert torch.equal(noise, torch.random.get_rng_state())
    torch.rand(3)
    second = open_backbone("timm/test_vit", random_weights=True)
    assert first.weight_hash == second.weight_hash
    assert first.preprocessing.input_size == (160, 160)
    assert not first.module.training
    assert first.name == first.spec == second.name == "test_vit"
    assert first.identity()["random_weights"]


def test_nano_opens_without_network_and_has_a_random_twin():
    backbone = open_backbone("nano")
    assert backbone.spec == "nano"
    assert backbone.pattern(0) and backbone.mlp(0) and backbone.layers[0].class_token
    assert not backbone.notes
    control = open_backbone("nano", random_weights=True)
    assert control.weight_hash != backbone.weight_hash
    assert control.weight_hash == open_backbone("nano", random_weights=True).weight_hash


def test_modules_and_backbones_pass_through():
    backbone = backbone_of("vit")
    assert open_backbone(backbone) is backbone
    assert open_backbone(backbone, preprocessing=backbone.preprocessing, device="cpu") is backbone
    other = open_backbone(backbone, preprocessing=Preprocessing(input_size=(64, 64), crop_pct=1.0))
    assert other.preprocessing.crop_pct == 1.0
    assert other.module is backbone.module
    assert open_backbone(model_of("vit")).module is model_of("vit")
    assert open_backbone(model_of("vit")).name.startswith("vit_tiny_patch16_224")


def test_assumed_preprocessing_is_said():
    backbone = open_backbone(model_of("own_tokens"))
    assert backbone.preprocessing == Preprocessing(input_size=(32, 32))
    assert backbone.notes == (
        "the model states no preprocessing: 32 x 32, crop 0.875, bicubic, ImageNet mean and deviation assumed",
    )
    stated = TokenModel()
    stated.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    assert open_backbone(stated).preprocessing == Preprocessing((32, 32), 1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert not open_backbone(stated).notes


def test_random_control_of_a_module_shuffles_a_copy():
    model = model_of("own_tokens")
    before = deepcopy(model)
    control = open_backbone(model, random_weights=True)
    assert same_weights(model, before)
    for own, shuffled in zip(model.parameters(), control.module.parameters(), strict=True):
        assert torch.equal(own.flatten().sort().values, shuffled.flatten().sort().values)
    assert control.weight_hash != open_backbone(model).weight_hash
    assert control.weight_hash == open_backbone(model, random_weights=True).weight_hash
    assert "untrained control" in control.notes[0]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vit_tiny_patch16_22", {}, "Unknown backbone 'vit_tiny_patch16_22'. Did you mean 'vit_tiny_patch16_224'"),
        ("nanno", {}, "Did you mean 'nano'"),
        ("vit_tiny_patch16_224.augreg_in21", {}, "Unknown pretrained tag .* Did you mean"),
        ("model.safetensors", {}, "is a weights file, not a backbone"),
        ("vit_small_patch16_36x1_224", {}, "timm has no pretrained weights for 'vit_small_patch16_36x1_224'"),
        (7, {}, "A value of type int is not a backbone. Give an nn.Module, 'nano'"),
        ("nano", {"device": "gpu"}, "Unknown device 'gpu'. Known: auto, cpu, cuda"),
        ("nano", {"weights": "a.pth", "random_weights": True}, "Both weights and random weights"),
        (
            ConvModel(),
            {"weights": "a.pth"},
            "Weights can only be given with a name. Loading them into your model would",
        ),
    ],
)
def test_wrong_requests_say_what_to_do(model, options, message):
    with pytest.raises(BackboneError, match=message):
        open_backbone(model, **options)


@pytest.mark.parametrize("given", [lambda image: image, Preprocessing, "imagenet"])
def test_what_is_no_preprocessing_is_refused(given):
    message = r"A (function|Preprocessing|str) is no preprocessing. Give Preprocessing\(...\), TextPreprocessing"
    with pytest.raises(BackboneError, match=message):
        open_backbone(ConvModel(), preprocessing=given)


def test_attention_of_torch_is_noted_whatever_it_is_called():
    class Block(TokenBlock):
        def __init__(self, width):
            super().__init__(width)
            self.mha = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x):
            return super().forward(x + self.mha(x, x, x)[0])

    model = TokenModel()
    model.trunk = nn.ModuleList(Block(24) for _ in range(3))
    said = "attention that shows no probabilities has no pattern over all patches: energy maps are used instead"
    assert open_backbone(model).notes[-1] == said


def test_absent_cuda_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        BackboneError, match=r"The device 'cuda' is not there. torch sees no CUDA device. Use auto or cpu"
    ):
        open_backbone("nano", device="cuda")


def test_unreachable_hub_fails_fast_with_the_ways_out(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(download, "is_cached", lambda cfg: False)
    start = time.monotonic()
    with pytest.raises(BackboneError) as caught:
        open_backbone("vit_tiny_patch16_224")
    assert time.monotonic() - start < 15
    message = str(caught.value)
    assert "not in the cache and http://127.0.0.1:9 cannot be reached" in message
    assert "--weights FILE" in message
    assert "random_weights=True" in message


def test_offline_switch_and_failed_download_are_plain_errors(monkeypatch):
    from huggingface_hub import constants

    before = constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"not in the cache. HF_HUB_OFFLINE is set"):
        open_backbone("vit_tiny_patch16_224")
    # A cache that says yes and holds nothing: offline, and no traceback.
    monkeypatch.setattr(download, "is_cached", lambda cfg: True)
    with pytest.raises(BackboneError, match=r"The pretrained weights of 'test_vit' could not be loaded"):
        open_backbone("test_vit")
    assert before[0] == constants.HF_HUB_ETAG_TIMEOUT


def test_pretrained_weights_come_from_the_cache(monkeypatch, tmp_path):
    """The real loading path of timm, with its cache filled by hand."""
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    donor = timm.create_model("test_vit")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cfg = timm.get_pretrained_cfg("test_vit")
    folder = tmp_path / f"models--{cfg.hf_hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(donor.state_dict(), snapshot / "model.safetensors")
    if not download.is_cached(cfg):
        pytest.skip("this huggingface_hub reads its cache folder at import")
    backbone = open_backbone("test_vit")
    assert same_weights(backbone.module, donor)
    assert backbone.name == backbone.spec == f"test_vit.{cfg.tag}"


def test_models_that_cannot_be_probed_say_why():
    class Wants64(ConvModel):
        def forward(self, x):
            if x.shape[-1] != 64:
                raise ValueError("expected 64 pixels")
            return super().forward(x)

    with pytest.raises(
        BackboneError, match=r"could not run on a trial batch of 2 x 3 x 224 x 224. ValueError: expected 64"
    ):
        open_backbone(Wants64())
    assert open_backbone(Wants64(), preprocessing=Preprocessing(input_size=(64, 64))).depth == 2

    class Nothing(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))

    with pytest.raises(BackboneError, match=r"No layers were found in Nothing"):
        open_backbone(Nothing())

    class TokensFirst(TokenModel):
        def forward(self, x):
            x = self.embed(x).flatten(2).permute(2, 0, 1)
            for block in self.trunk:
                x = block(x)
            return x[0]

    with pytest.raises(BackboneError, match=r"return \(tokens, batch, width\): trunk.*batch_first=True"):
        open_backbone(TokensFirst())


def test_tuple_and_dataclass_outputs_and_shared_blocks():
    from dataclasses import dataclass

    @dataclass
    class Result:
        hidden: torch.Tensor
        extra: str = ""

    class TupleBlock(TokenBlock):
        def forward(self, x):
            return super().forward(x), None

    class Model(TokenModel):
        def __init__(self, wrap, width=24):
            super().__init__(width)
            self.trunk = nn.ModuleList(wrap(width) for _ in range(3))

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            for block in self.trunk:
                out = block(x)
                x = out.hidden if isinstance(out, Result) else out[0]
            return self.head(x.mean(1))

    class ResultBlock(TokenBlock):
        def forward(self, x):
            return Result(super().forward(x))

    for wrap in (TupleBlock, ResultBlock):
        model = Model(wrap)
        del model.cls_token
        backbone = open_backbone(model)
        assert backbone.depth == 3
        assert backbone.num_prefix_tokens == 0
        assert backbone.grid == (4, 4)
        name = backbone.layers[1].name
        pixels = pixels_for(backbone, 2)
        assert backbone.capture(pixels, [name])[name].shape == (2, 16, 24)
        with torch.no_grad(), backbone.visiting({name: torch.zeros_like}, stop=False) as run:
            zeroed = run(pixels)
        assert not torch.equal(zeroed, model(pixels))

    class Repeated(TokenModel):
        def __init__(self):
            super().__init__()
            block = TokenBlock(24)
            self.trunk = nn.Sequential(block, TokenBlock(24), block)

    backbone = open_backbone(Repeated())
    assert backbone.depth == 2  # the shared block is one site, read at its first call
    captured = backbone.capture(pixels_for(backbone, 1), [site.name for site in backbone.layers], stop=False)
    module, tokens = backbone.module, {}
    handle = module.trunk[0].register_forward_pre_hook(lambda m, a: tokens.setdefault("first", a[0].clone()))
    module(pixels_for(backbone, 1))
    handle.remove()
    torch.testing.assert_close(captured["blocks.0.hook_resid_post"], module.trunk[0](tokens["first"]).detach())


def test_unused_blocks_are_left_out():
    class Skips(TokenModel):
        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            return self.trunk[2](self.trunk[0](x))[:, 0]

    assert [site.module for site in open_backbone(Skips()).layers] == ["trunk.0", "trunk.2"]


def test_prefix_tokens_of_plain_models():
    class Prefixed(TokenModel):
        """Prefix tokens under a name that says nothing."""

        def __init__(self, count, declared=None, name="extra"):
            super().__init__()
            del self.cls_token
            self.register_parameter(name, nn.Parameter(torch.randn(1, count, 24)))
            self.prefix = name
            if declared is not None:
                self.num_prefix_tokens = declared

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([getattr(self, self.prefix).expand(len(x), -1, -1), x], 1)
            for block in self.trunk:
                x = block(x)
            return x[:, 0]

    counted = open_backbone(Prefixed(1))
    assert (counted.num_prefix_tokens, counted.layers[0].class_token) == (1, True)
    assert "the first token is taken for a CLS token" in counted.notes[-1]
    declared = open_backbone(Prefixed(3, declared=3))
    assert (declared.num_prefix_tokens, declared.grid) == (3, (4, 4))

    class Distilled(Prefixed):
        def __init__(self):
            super().__init__(1, name="dist_token")
            self.cls_token = nn.Parameter(torch.randn(1, 1, 24))

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            before = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token)]
            return self.trunk[1](self.trunk[0](torch.cat([*before, x], 1)))

    distilled = open_backbone(Wrapper(Distilled()), preprocessing=Preprocessing((32, 32)))
    assert (distilled.num_prefix_tokens, distilled.grid, distilled.layers[0].class_token) == (2, (4, 4), True)
    registers = open_backbone(Prefixed(4, name="register_tokens"))
    assert (registers.num_prefix_tokens, registers.layers[0].class_token) == (4, False)


def test_weight_hash_follows_training():
    backbone = open_backbone(TokenModel())
    before = backbone.weight_hash
    with torch.no_grad():
        backbone.module.head.bias.add_(1)
    assert backbone.weight_hash != before


def test_listing():
    found = list_backbones("nano") + list_backbones("vit_tiny_patch16_224*")
    assert [entry.name for entry in found][:2] == ["nano", "vit_tiny_patch16_224.augreg_in21k"]
    assert found[0].parameters == sum(p.numel() for p in open_backbone("nano").module.parameters())
    assert found[1].licence == "apache-2.0"
    assert found[1].parameters and found[1].input_size == (224, 224)
    assert found[1].to_json()["family"] == "vision_transformer"
    everything = list_backbones()
    assert len(everything) > 1000
    assert all(entry.licence for entry in everything)
    assert list_backbones("no_such_thing*") == []


@pytest.mark.parametrize(
    ("pattern", "listed", "left_out"),
    [
        ("dino*", {"vit_small_patch14_dinov2.lvd142m", "hf:facebook/dinov2-small"}, {"nano"}),
        ("hf:*", {"hf:google-bert/bert-base-uncased"}, {"nano"}),
        ("nano", {"nano"}, {"convnext_nano.in12k"}),
        ("timm/convnext_atto*", {"convnext_atto.d2_in1k"}, {"hf:facebook/dinov2-small"}),
    ],
)
def test_patterns(pattern, listed, left_out):
    names = {entry.name for entry in list_backbones(pattern)}
    assert listed <= names and not left_out & names


def test_what_a_model_takes_and_needs_is_listed():
    entries = {entry.name: entry for entry in list_backbones("*")}
    assert entries["hf:facebook/hubert-base-ls960"].takes == "audio"
    assert entries["nano"].takes == "128 x 128" and entries["nano"].code_licence == "mit"
    assert entries["open_clip:ViT-B-32/laion2b_s34b_b79k"].needs == "open-clip"
