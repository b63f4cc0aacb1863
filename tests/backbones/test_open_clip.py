"""open_clip: its image tower, its own transform, and what goes wrong. Without open_clip: what to install."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dna_probe.backbones import download, open_backbone, open_clip
from dna_probe.errors import BackboneError
from dna_probe.images.preprocessing import Preprocessing

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 48, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
}
STATED = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}


@pytest.fixture
def library(monkeypatch, tmp_path):
    """open_clip with one more architecture, which is small, for as long as the test runs."""
    library = pytest.importorskip("open_clip", reason="open_clip is not installed (extra open-clip)")
    monkeypatch.setattr(library.factory, "_MODEL_CONFIGS", dict(library.factory._MODEL_CONFIGS))
    monkeypatch.setattr(library.factory, "_MODEL_CONFIG_PATHS", list(library.factory._MODEL_CONFIG_PATHS))
    (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(TINY))
    library.add_model_config(tmp_path / "ViT-tiny-test.json")
    return library


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_image_tower_of_an_object_is_probed(library, pixels):
    model = library.create_model("ViT-tiny-test", force_preprocess_cfg=STATED).train()
    backbone = open_backbone(model)
    assert backbone.module is model.visual
    assert (backbone.depth, backbone.num_prefix_tokens, backbone.grid) == (3, 1, (4, 4))
    assert backbone.layers[0].class_token
    assert all(backbone.mlp(layer).width == 192 for layer in range(3))
    assert backbone.notes[0] == "of CLIP the tower for images is probed"
    # torch's own attention module shows neither heads nor probabilities, and that is said.
    assert backbone.heads(0) is None and backbone.pattern(0) is None
    assert any("has no pattern" in note for note in backbone.notes)
    assert model.training

    captured = backbone.capture(pixels, [site.name for site in backbone.layers])
    with torch.no_grad():
        given_out = model.eval().visual.forward_intermediates(
            pixels, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
    patches, extra = given_out["image_intermediates"], given_out["image_intermediates_prefix"]
    expected = [torch.cat([prefix, tokens], 1) for tokens, prefix in zip(patches, extra, strict=True)]
    for activation, reference in zip(captured.values(), expected, strict=True):
        torch.testing.assert_close(activation, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(101, 80), (80, 101), (64, 64)])
def test_pixels_are_those_of_its_own_transform(library, mode, size):
    model = library.create_model("ViT-tiny-test", force_preprocess_cfg={**STATED, "resize_mode": mode})
    backbone = open_backbone(model)
    random = np.random.default_rng(1)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    own = library.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    transform = library.transform.image_transform_v2(own, is_train=False)
    np.testing.assert_allclose(backbone.preprocessing(image), transform(image).numpy(), rtol=0, atol=1e-5)


def test_padding_of_another_colour_is_a_note(library):
    model = library.create_model("ViT-tiny-test", force_preprocess_cfg={**STATED, "resize_mode": "longest"})
    backbone = open_backbone(model)
    assert backbone.preprocessing.crop_mode == "border"
    assert "images are padded with the mean colour, where open_clip pads with one grey level" in backbone.notes
    del model.visual.preprocess_cfg
    assert open_backbone(model).preprocessing == Preprocessing((64, 64))


def test_a_tower_of_timm_is_a_timm_model(library):
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    model = library.CustomTextCLIP(16, {**vision, "timm_model_pretrained": False}, TINY["text_cfg"])
    backbone = open_backbone(model)
    assert backbone.module is model.visual.trunk
    assert backbone.pattern(0) and backbone.heads(0)
    assert backbone.preprocessing.input_size == (160, 160)


def test_names_with_random_weights_or_ones_own(library, tmp_path, caplog):
    first = open_backbone("open_clip:ViT-tiny-test", random_weights=True)
    torch.rand(3)
    second = open_backbone(first.spec, random_weights=True)
    assert first.weight_hash == second.weight_hash
    assert first.name == first.spec == "open_clip:ViT-tiny-test"
    assert first.preprocessing.crop_pct == 1.0
    model = library.create_model("ViT-tiny-test")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    caplog.clear()
    backbone = open_backbone("open_clip:ViT-tiny-test", weights=tmp_path / "own.pth")
    assert torch.equal(backbone.module.conv1.weight, model.visual.conv1.weight)
    assert not caplog.records


def test_a_pretrained_tag_goes_through_open_clip(library, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    model = library.create_model("ViT-tiny-test")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "own.safetensors")
    stated = {"file": str(tmp_path / "own.safetensors"), **STATED, "hf_hub": "someone/tiny/"}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "ViT-tiny-test", {"mine": stated})
    monkeypatch.setattr(download, "is_cached", lambda place: place.hf_hub_id == "someone/tiny")
    backbone = open_backbone("open_clip:ViT-tiny-test/mine")
    assert backbone.spec == "open_clip:ViT-tiny-test/mine"
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert torch.equal(backbone.module.conv1.weight, model.visual.conv1.weight)
    monkeypatch.setattr(download, "is_cached", lambda place: False)
    monkeypatch.setattr(download, "require_server", _out_of_reach)
    with pytest.raises(BackboneError, match=r"cannot be reached. .*Give local weights"):
        open_backbone("open_clip:ViT-tiny-test/mine")


def test_a_tag_states_the_activation_and_the_pixels_whatever_the_weights(library, tmp_path, monkeypatch, recwarn):
    from open_clip.transformer import QuickGELU
    from safetensors.torch import save_file

    model = library.create_model("ViT-tiny-test", force_quick_gelu=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "own.safetensors")
    stated = {"file": str(tmp_path / "own.safetensors"), **STATED, "hf_hub": "someone/tiny/", "quick_gelu": True}
    monkeypatch.setitem(library.pretrained._PRETRAINED, "ViT-tiny-test", {"mine": stated})
    monkeypatch.setattr(download, "is_cached", lambda place: True)
    name, pixels = "open_clip:ViT-tiny-test/mine", torch.zeros(1, 3, 64, 64)
    for given in ({}, {"weights": tmp_path / "own.safetensors"}, {"random_weights": True}):
        backbone = open_backbone(name, **given)
        assert any(isinstance(part, QuickGELU) for part in backbone.module.modules())
        assert (backbone.preprocessing.mean, backbone.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        if "random_weights" not in given:
            torch.testing.assert_close(backbone.module(pixels), model.eval().visual(pixels))
    assert not [warning for warning in recwarn if "QuickGELU" in str(warning.message)]


def _out_of_reach(name, place):
    raise BackboneError(f"The weights of {name!r} are not in the cache and the server cannot be reached")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-23/openai", "Unknown open_clip architecture 'ViT-B-23'. Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/openia", "Unknown pretrained tag of ViT-B-32 'openia'. Did you mean 'openai'"),
        ("open_clip:ViT-B-32", "'open_clip:ViT-B-32' does not say which weights. Known: openai, .*Write open_clip"),
    ],
)
def test_wrong_names(library, name, message):
    with pytest.raises(BackboneError, match=message):
        open_backbone(name)


def test_weights_at_an_address_and_on_the_hub_are_looked_for_where_open_clip_keeps_them():
    hub = open_clip._place({"hf_hub": "timm/vit_base.openai/", "url": "https://host/a.pt"})
    assert (hub.hf_hub_id, hub.hf_hub_filename, hub.url) == ("timm/vit_base.openai", "open_clip_pytorch_model.bin", "")
    named = open_clip._place({"hf_hub": "apple/clip/weights.bin"})
    assert (named.hf_hub_id, named.hf_hub_filename) == ("apple/clip", "weights.bin")
    address = open_clip._place({"url": "https://host/a/b.pt", "hf_hub": ""})
    assert (address.hf_hub_id, address.url, address.file_name) == (None, "https://host/a/b.pt", "b.pt")


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        BackboneError, match=r"needs open_clip. It is not installed. pip install 'dna-probe\[open-clip\]'"
    ):
        open_backbone("open_clip:ViT-B-32/openai")
    assert not open_clip.is_own(SimpleNamespace())
