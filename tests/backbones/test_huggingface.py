"""Hugging Face transformers: its own hidden states, attentions and pixels again; names, folders and their errors."""

import json
import time
from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dna_probe
from dna_probe.backbones import download, huggingface, open_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.backbones.image_processors import read_processor
from dna_probe.errors import BackboneError, SiteError
from dna_probe.images.preprocessing import Preprocessing

from .. import tiny_language
from .zoo_huggingface import HF_ATTENTION, HF_CASES, SPECIAL, TEXT, VISION, made

transformers = pytest.importorskip("transformers")


@lru_cache
def backbone_of(name: str) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = HF_CASES[name].make()
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.data += 0.1 * torch.randn_like(parameter)
            if path.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.data *= 10
    size = HF_CASES[name].size
    return open_backbone(model.train(), preprocessing=Preprocessing((size, size)) if size else None)


def pixels(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def saved(folder, name="hf_vit", processor=None, **options):
    """A folder with a model and its processor, as ``save_pretrained`` writes it."""
    torch.manual_seed(3)
    model = HF_CASES[name].make()
    model.save_pretrained(folder, **options)
    if processor is not None:
        processor.save_pretrained(folder)
    return model


class TestSites:
    @pytest.mark.parametrize("name", HF_ATTENTION)
    def test_patterns_are_those_that_transformers_gives_out(self, name):
        backbone = backbone_of(name)
        model = deepcopy(backbone.module).eval()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            expected = model(pixels(), output_attentions=True).attentions
        sites = [backbone.pattern(layer) for layer in range(backbone.depth)]
        captured = backbone.capture(pixels(), [site.name for site in sites])
        assert len(expected) == len(sites)
        for site, attention in zip(sites, expected, strict=True):
            assert site.width == 3
            torch.testing.assert_close(captured[site.name], attention, rtol=0, atol=1e-6)
            assert attention.max() > 0.15  # the test would pass with even attention

    @pytest.mark.parametrize("name", HF_ATTENTION)
    def test_residual_sites_are_the_hidden_states_of_transformers(self, name):
        backbone = backbone_of(name)
        model = deepcopy(backbone.module).eval()
        with torch.no_grad():
            expected = model(pixels(), output_hidden_states=True).hidden_states
        captured = backbone.capture(pixels(), [site.name for site in backbone.layers])
        # The first is what goes into the first block.
        assert len(expected) == len(captured) + 1
        assert all(torch.equal(a, b) for a, b in zip(captured.values(), expected[1:], strict=True))

    @pytest.mark.parametrize("name", ["hf_vit", "hf_clip", "hf_dinov3"])
    def test_heads_lie_side_by_side(self, name):
        """Unit k is of head k // (width / heads): its pattern times its values."""
        backbone = backbone_of(name)
        site, pattern = backbone.heads(1), backbone.pattern(1)
        owner = backbone.module.get_submodule(pattern.module)
        values = []
        handle = owner.v_proj.register_forward_hook(lambda module, args, output: values.append(output.clone()))
        captured = backbone.capture(pixels(), [site.name, pattern.name])
        handle.remove()
        for unit in (0, 15, 16, 47):
            weights = captured[pattern.name][:, site.head_of(unit)]
            expected = (weights @ values[0][..., unit, None])[..., 0]
            torch.testing.assert_close(captured[site.name][..., unit], expected, rtol=0, atol=1e-5)

    def test_the_switch_to_eager_attention_is_put_back_everywhere(self):
        model = HF_CASES["hf_clip_two_towers"].make()
        backbone = open_backbone(model)
        before = [part._attn_implementation for part in (model.config, *_parts(model.config))]
        assert before == ["sdpa"] * 3
        seen = []
        with (
            pytest.raises(KeyboardInterrupt),
            backbone.visiting({backbone.pattern(0).name: lambda _: _interrupt(seen, model)}) as run,
        ):
            run(pixels())
        assert seen == ["eager"]
        assert [part._attn_implementation for part in (model.config, *_parts(model.config))] == before

    def test_without_patterns_the_model_stays_fused_and_bit_identical(self):
        backbone = backbone_of("hf_beit")
        model, seen = backbone.module, []
        visit = {s.name: lambda _: seen.append(model.config._attn_implementation) for s in backbone.layers}
        with torch.no_grad(), backbone.visiting(visit, stop=False) as run:
            hooked = run(pixels())
        with torch.no_grad():
            plain = deepcopy(model).eval()(pixels())
        assert set(seen) == {"sdpa"}
        assert torch.equal(hooked.last_hidden_state, plain.last_hidden_state)

    def test_patterns_cannot_be_edited_and_it_says_so(self):
        backbone = backbone_of("hf_vit")
        edit = {"blocks.0.attn.hook_pattern": torch.zeros_like}
        message = r"blocks.0.attn.hook_pattern cannot be edited. .* Edit blocks.0.attn.hook_z"
        with torch.no_grad(), backbone.visiting(edit) as run, pytest.raises(SiteError, match=message):
            run(pixels())

    def test_notes_say_only_what_is_so(self):
        assert backbone_of("hf_vit").notes == (
            "the model states no preprocessing: 64 x 64, crop 0.875, bicubic, ImageNet mean and deviation assumed",
        )
        assert backbone_of("hf_siglip_two_towers").notes[-1] == "of SiglipModel the tower for images is probed"

    def test_the_encoder_of_an_encoder_and_decoder_is_probed(self):
        torch.manual_seed(0)
        small = {"d_model": 24, "num_layers": 3, "num_heads": 3, "d_kv": 8, "d_ff": 48, "vocab_size": 60}
        model = made("T5Model", "T5Config", **small, decoder_start_token_id=0)()
        part, notes = huggingface.tower(model)
        assert part is model.encoder
        assert notes == ("of T5Model the encoder is probed",)
        backbone = open_backbone(model, preprocessing=Sequences("text", (9,)))
        assert (backbone.depth, backbone.notes) == (3, notes)
        inputs = torch.from_numpy(Sequences("text", (9,)).trial(2))
        pattern = backbone.pattern(1).name
        captured = backbone.capture(inputs, [pattern])[pattern]
        part.set_attn_implementation("eager")
        expected = part.eval()(inputs, output_attentions=True).attentions[1]
        torch.testing.assert_close(captured, expected.detach(), rtol=0, atol=1e-6)


def _parts(config):
    return config.text_config, config.vision_config


def _interrupt(seen, model):
    seen.append(model.vision_model.config._attn_implementation)
    raise KeyboardInterrupt


class Sequences:
    """Token numbers or waves of one length, as a preprocessing of another modality gives them."""

    class_token = True

    def __init__(self, modality, shape):
        self.modality, self.shape = modality, shape

    def trial(self, count):
        random = np.random.default_rng(0)
        if self.modality == "text":
            return random.integers(3, 50, (count, *self.shape))
        return random.standard_normal((count, *self.shape)).astype(np.float32)


_SOUND = {**VISION, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
_WAVES = {key: value for key, value in _SOUND.items() if key not in ("image_size", "patch_size")}
_LLAMA = {**TEXT, **SPECIAL, "num_key_value_heads": 1}
OTHERS = {
    "bert": (made("BertModel", "BertConfig", **TEXT), "text", (9,), "dense"),
    "roberta": (made("RobertaModel", "RobertaConfig", **TEXT, **SPECIAL), "text", (9,), "dense"),
    "distilbert": (
        made("DistilBertModel", "DistilBertConfig", dim=24, hidden_dim=48, n_layers=3, n_heads=3, vocab_size=60),
        "text",
        (9,),
        "out_lin",
    ),
    "gpt2": (
        made("GPT2Model", "GPT2Config", n_embd=24, n_layer=3, n_head=3, vocab_size=60, n_positions=32, **SPECIAL),
        "text",
        (9,),
        "c_proj",
    ),
    "llama": (made("LlamaModel", "LlamaConfig", **_LLAMA), "text", (9,), "o_proj"),
    "ast": (
        made("ASTModel", "ASTConfig", **{**VISION, "num_mel_bins": 32, "max_length": 48}),
        "audio",
        (48, 32),
        "o_proj",
    ),
    "hubert": (
        made("HubertModel", "HubertConfig", **_WAVES, num_conv_pos_embedding_groups=4),
        "audio",
        (800,),
        "out_proj",
    ),
    "wav2vec2": (
        made("Wav2Vec2Model", "Wav2Vec2Config", **_WAVES, num_conv_pos_embedding_groups=4),
        "audio",
        (800,),
        "out_proj",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_encoders_and_decoders_of_texts_and_sounds_have_the_same_sites(name):
    make, modality, shape, projection = OTHERS[name]
    torch.manual_seed(0)
    model, reader = make().eval(), Sequences(modality, shape)
    backbone = Backbone(model, reader)
    assert backbone.depth == 3
    inputs = torch.from_numpy(reader.trial(2))
    captured = backbone.capture(inputs, list(backbone.sites))
    for layer in range(3):
        heads, pattern = backbone.heads(layer), backbone.pattern(layer)
        assert (heads.heads, heads.module.rpartition(".")[2]) == (3, projection)
        assert backbone.mlp(layer).width == (4 * 24 if name == "gpt2" else model.config.to_dict().get("hidden_dim", 96))
        assert captured[heads.name].shape[-1] == heads.width
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(inputs, output_attentions=True, output_hidden_states=True)
    for layer in range(3):
        pattern = backbone.pattern(layer)
        torch.testing.assert_close(captured[pattern.name], expected.attentions[layer], rtol=0, atol=1e-6)
        if layer < 2:  # behind the last, some put a norm
            torch.testing.assert_close(
                captured[f"blocks.{layer}.hook_resid_post"], expected.hidden_states[layer + 1], rtol=0, atol=1e-5
            )


PROCESSORS = {
    "vit": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}),
    "oblong": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 48}}),
    "deit": (
        "DeiTImageProcessorPil",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}},
    ),
    "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 38}, "crop_size": {"height": 32, "width": 32}}),
    "siglip": ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}}),
    "beit": ("BeitImageProcessorPil", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}}),
    "convnext_large": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    "another scale": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5}),
    "no scale": (
        "ViTImageProcessorPil",
        {"size": {"height": 32, "width": 32}, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60.0] * 3},
    ),
    "not normalised": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    "nearest": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "resample": 0}),
}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


class TestProcessors:
    @pytest.mark.parametrize("size", [(64, 64), (152, 76), (76, 152)])
    @pytest.mark.parametrize("name", PROCESSORS)
    def test_pixels_are_those_of_the_processor(self, name, size):
        kind, settings = PROCESSORS[name]
        processor = getattr(transformers, kind)(**settings)
        preprocessing, _ = read_processor(processor)
        image = picture(*size)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        found = preprocessing(image)
        scale = max(1.0, float(np.abs(expected).max()))  # unscaled pixels reach 255
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)

    def test_its_torchvision_version_differs_by_its_rounding_alone(self):
        image = picture(80, 64)
        for kind in ("ViTImageProcessor", "DINOv3ViTImageProcessor"):
            processor = getattr(transformers, kind)(size={"height": 32, "width": 32})
            preprocessing, _ = read_processor(processor)
            expected = processor(image, return_tensors="np")["pixel_values"][0]
            levels = np.abs(preprocessing(image) - expected) * np.asarray(preprocessing.std)[:, None, None] * 255
            assert levels.max() < 2.1

    @pytest.mark.parametrize("margin", range(1, 8))
    def test_odd_margins_are_halved_as_by_the_processor(self, margin):
        """Of a wide image, and of one that is squashed before the crop."""
        wide, side = picture(32 + margin, 32), {"height": 32, "width": 32}
        before = {"height": 32 + margin, "width": 32 + margin}
        clip = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
        squashed = transformers.DeiTImageProcessorPil(size=before, crop_size=side)
        for processor in (clip, squashed):
            preprocessing, notes = read_processor(processor)
            expected = processor(wide, return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(preprocessing(wide), expected, rtol=0, atol=1e-5)
            assert not notes
        # Said only where it may change a pixel: what was cached and saved without it stays.
        assert ("crop_rounding" in preprocessing.to_json()) == (margin % 2 == 1)

    def test_the_size_before_the_crop_is_kept_for_all_sizes(self):
        for short in range(33, 700):
            processor = transformers.CLIPImageProcessorPil(
                size={"shortest_edge": short}, crop_size={"height": 32, "width": 32}
            )
            preprocessing, _ = read_processor(processor)
            assert preprocessing._resized(2 * short, short) == (2 * short, short)

    @pytest.mark.parametrize(
        ("kind", "settings", "message"),
        [
            ("ViTImageProcessorPil", {"do_resize": False}, "cannot be done here. It does not resize"),
            ("CLIPImageProcessorPil", {"do_pad": True}, "What CLIPImageProcessorPil does .* It does do_pad"),
            ("CLIPImageProcessorPil", {"size": {"longest_edge": 32}}, "It resizes to longest_edge = 32"),
            (
                "CLIPImageProcessorPil",
                {"size": {"shortest_edge": 32}, "crop_size": {"height": 40, "width": 40}},
                "It crops 40 x 40 from a shortest edge of 32",
            ),
            (
                "DeiTImageProcessorPil",
                {"size": {"height": 36, "width": 48}, "crop_size": {"height": 32, "width": 32}},
                "It resizes to 36 x 48 and crops 32 x 32",
            ),
            ("ViTImageProcessorPil", {"image_mean": [0.5]}, "Its settings are none that are known here"),
            ("LevitImageProcessorPil", {}, "What LevitImageProcessorPil does .* It goes by a rule of its own"),
            ("PoolFormerImageProcessorPil", {}, "It goes by crop_pct"),
            ("EfficientNetImageProcessorPil", {"rescale_offset": True}, "It goes by include_top and rescale_offset"),
        ],
    )
    def test_what_cannot_be_done_is_an_error(self, kind, settings, message):
        with pytest.raises(BackboneError, match=message) as caught:
            read_processor(getattr(transformers, kind)(**settings))
        assert "Pass preprocessing=Preprocessing(...)" in str(caught.value)

    def test_a_processor_that_does_not_crop_is_a_note(self):
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
        preprocessing, notes = read_processor(processor)
        assert preprocessing.input_size == (32, 32)
        assert notes == ("CLIPImageProcessorPil does not crop: the square in the centre is read",)


class TestNames:
    def test_a_folder_opens_with_its_weights_and_its_processor(self, tmp_path):
        processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3])
        model = saved(tmp_path, processor=processor)
        backbone = open_backbone(f"hf:{tmp_path}")
        assert backbone.spec == f"hf:{tmp_path.resolve()}"
        assert backbone.preprocessing == read_processor(processor)[0]
        assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
        assert not backbone.notes and not backbone.module.training
        expected = model.eval()(pixels(), output_hidden_states=True).hidden_states[1]
        captured = backbone.capture(pixels(), "blocks.0.hook_resid_post")["blocks.0.hook_resid_post"]
        torch.testing.assert_close(captured, expected.detach())

    def test_of_two_towers_that_for_images_is_taken_with_the_processor_of_both(self, tmp_path):
        processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
        )
        model = saved(tmp_path, "hf_clip_two_towers", processor)
        backbone = open_backbone(f"hf:{tmp_path}")
        assert backbone.family == "CLIPVisionModel"
        assert "of CLIPModel the tower for images is probed" in backbone.notes
        assert backbone.preprocessing.mean == pytest.approx(processor.image_mean)
        assert torch.equal(
            backbone.module.encoder.layers[0].mlp.fc1.weight, model.vision_model.encoder.layers[0].mlp.fc1.weight
        )

    def test_half_precision_and_shards_are_read_in_single_precision(self, tmp_path):
        model = HF_CASES["hf_dinov2"].make().half()
        model.save_pretrained(tmp_path, max_shard_size="50KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
        backbone = open_backbone(f"hf:{tmp_path}")
        assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}

    def test_a_head_that_a_checkpoint_lacks_is_the_same_on_every_call(self, tmp_path):
        saved(tmp_path, "hf_vit_classifier")  # has no pooler, which ViTModel has
        noise = torch.random.get_rng_state()
        first = open_backbone(f"hf:{tmp_path}")
        assert torch.equal(noise, torch.random.get_rng_state())
        torch.rand(3)
        assert first.family == "ViTModel"
        assert first.weight_hash == open_backbone(f"hf:{tmp_path}").weight_hash

    def test_random_weights_need_the_configuration_alone(self, tmp_path):
        saved(tmp_path)
        trained = open_backbone(f"hf:{tmp_path}")
        (tmp_path / "model.safetensors").unlink()
        control = open_backbone(f"hf:{tmp_path}", random_weights=True)
        torch.rand(3)
        assert control.weight_hash == open_backbone(f"hf:{tmp_path}", random_weights=True).weight_hash
        assert control.weight_hash != trained.weight_hash
        assert control.identity()["random_weights"]

    def test_weights_of_ones_own(self, tmp_path):
        model = saved(tmp_path / "model")
        with torch.no_grad():
            model.layers[0].mlp.fc1.bias += 1
        torch.save(model.state_dict(), tmp_path / "own.pth")
        backbone = open_backbone(f"hf:{tmp_path / 'model'}", weights=tmp_path / "own.pth")
        assert torch.equal(backbone.module.layers[0].mlp.fc1.bias, model.layers[0].mlp.fc1.bias)
        torch.save({"layers.0.mlp.fc1.bias": model.layers[0].mlp.fc1.bias}, tmp_path / "part.pth")
        with pytest.raises(
            BackboneError, match=r"part.pth does not fit ViTModel. \d+ tensors are missing \(embeddings"
        ):
            open_backbone(f"hf:{tmp_path / 'model'}", weights=tmp_path / "part.pth")

    def test_objects_find_the_processor_beside_their_weights(self, tmp_path):
        saved(tmp_path / "vit-mine", processor=transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}))
        model = transformers.ViTModel.from_pretrained(tmp_path / "vit-mine")
        backbone = open_backbone(model)
        assert (backbone.name, backbone.spec) == ("vit-mine", None)
        assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
        assert not backbone.notes
        assert backbone.module is model
        assert open_backbone(HF_CASES["hf_vit"].make()).name == "ViTModel"

    def test_the_cache_of_the_hub_is_read_without_a_network(self, tmp_path, monkeypatch):
        from huggingface_hub import constants

        commit = "0123456789" * 4
        folder = tmp_path / "models--someone--vit"
        saved(
            folder / "snapshots" / commit, processor=transformers.ViTImageProcessorPil(size={"height": 64, "width": 64})
        )
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(download, "require_server", lambda *_: pytest.fail("the network was asked"))
        backbone = open_backbone("hf:someone/vit")
        assert (backbone.name, backbone.spec) == ("hf:someone/vit", f"hf:someone/vit@{commit}")
        assert backbone.weight_hash == open_backbone(backbone.spec).weight_hash
        # Without its processor, as who loads the model alone leaves it, the rest is fetched; else it is done without.
        asked = []
        processor = folder / "snapshots" / commit / "preprocessor_config.json"
        processor.rename(tmp_path / "kept.json")
        monkeypatch.setattr(download, "require_server", lambda *_: asked.append("server") or _out_of_reach(*_))
        assert "the model states no preprocessing" in open_backbone("hf:someone/vit").notes[0]
        assert asked == ["server"]

        def fetch(name, revision, local_files_only=False, allow_patterns=()):
            if not local_files_only:
                assert revision == commit and not any("safetensors" in pattern for pattern in allow_patterns)
                (tmp_path / "kept.json").rename(processor)
            return str(processor.parent)

        with monkeypatch.context() as reachable:
            reachable.setattr(download, "require_server", lambda *_: None)
            reachable.setattr("huggingface_hub.snapshot_download", fetch)
            fetched = open_backbone("hf:someone/vit")
        assert fetched.preprocessing == backbone.preprocessing and not fetched.notes
        # Half a download counts for none.
        (folder / "snapshots" / commit / "model.safetensors").unlink()
        monkeypatch.setattr(download, "require_server", _out_of_reach)
        with pytest.raises(BackboneError, match=r"cannot be reached. .*hf download ID"):
            open_backbone("hf:someone/vit")
        assert open_backbone("hf:someone/vit", random_weights=True).depth == 3


def _out_of_reach(name, cfg):
    raise BackboneError(f"{name} is not in the cache and the server cannot be reached")


@pytest.mark.parametrize("kind", ["text", "audio"])
def test_texts_and_sounds_are_read_by_what_lies_beside_the_model(kind, tmp_path):
    reader = tiny_language.tokeniser() if kind == "text" else tiny_language.waveform_extractor()
    (tiny_language.bert if kind == "text" else tiny_language.wav2vec2)().save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    backbone = open_backbone(f"hf:{tmp_path}")
    assert backbone.preprocessing.modality == kind
    assert backbone.pattern(0) and backbone.heads(0) and backbone.mlp(0)
    assert backbone.preprocessing.to_json() == open_backbone(backbone.spec).preprocessing.to_json()
    if kind == "text":
        assert backbone.preprocessing.max_length == 64
        assert backbone.preprocessing.load("the fox jumps", "").tolist() == reader("the fox jumps")["input_ids"]


def test_roberta_has_fewer_positions_than_its_table_has_rows(tmp_path):
    settings = {**TEXT, "num_attention_heads": 4, "pad_token_id": 1, "max_position_embeddings": 34}
    model = made("RobertaModel", "RobertaConfig", **settings)()
    model.save_pretrained(tmp_path)
    tokeniser = tiny_language.tokeniser()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokeniser.backend_tokenizer).save_pretrained(tmp_path)
    backbone = open_backbone(f"hf:{tmp_path}")
    assert backbone.preprocessing.max_length == 32
    assert len(backbone.preprocessing.load("fox " * 99)) == 32
    backbone.capture(backbone.preprocessing.load("fox " * 99)[None], [backbone.layers[-1].name])


class TestErrors:
    def test_no_such_folder(self, tmp_path):
        with pytest.raises(BackboneError, match=r"There is no folder .*/none. Give an existing folder as hf:FOLDER"):
            open_backbone(f"hf:{tmp_path}/none")

    def test_a_folder_without_model(self, tmp_path):
        with pytest.raises(BackboneError, match=r"holds no transformers model. There is no config.json in it"):
            open_backbone(f"hf:{tmp_path}")

    def test_pickled_weights_are_not_read(self, tmp_path):
        model = saved(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(BackboneError, match=r"holds no safetensors weights. Save it as safetensors"):
            open_backbone(f"hf:{tmp_path}")
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        message = r"holds no safetensors weights. It holds pytorch_model.bin, and other formats could run code"
        with pytest.raises(BackboneError, match=message):
            open_backbone(f"hf:{tmp_path}")

    def test_damaged_weights(self, tmp_path):
        saved(tmp_path)
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[:-1000])
        with pytest.raises(BackboneError, match=r"could not be loaded. SafetensorError: .*Check that .* is whole"):
            open_backbone(f"hf:{tmp_path}")

    def test_blocks_without_weights_are_not_left_random(self, tmp_path):
        from safetensors.torch import load_file, save_file

        saved(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        lost = next(
            name for name in state if name.endswith("layers.2.mlp.fc1.weight") or "layer.2.intermediate" in name
        )
        del state[lost]
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(BackboneError, match=r"does not fit ViTModel. 1 tensors are missing \(layers.2.mlp.fc1"):
            open_backbone(f"hf:{tmp_path}")

    def test_what_stands_for_hidden_parts_in_training_may_be_missing(self, tmp_path):
        from safetensors.torch import load_file, save_file

        tiny_language.wav2vec2().save_pretrained(tmp_path)
        tiny_language.waveform_extractor().save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        assert state.pop("masked_spec_embed") is not None
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        assert open_backbone(f"hf:{tmp_path}").layers

    def test_code_of_a_repository_is_never_run(self, tmp_path):
        saved(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config |= {"model_type": "their-own", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(BackboneError, match=r"needs code that comes with it, and such code is not run"):
            open_backbone(f"hf:{tmp_path}")
        assert not (tmp_path / "ran").exists()
        del config["auto_map"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(BackboneError, match=r"could not be loaded. .*this version of transformers knows"):
            open_backbone(f"hf:{tmp_path}")

    def test_an_unreachable_hub_fails_fast_with_the_ways_out(self, monkeypatch, tmp_path):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
        start = time.monotonic()
        message = r"'hf:someone/model' are not in the cache and http://127.0.0.1:9 cannot be reached.*hf download ID"
        with pytest.raises(BackboneError, match=message):
            open_backbone("hf:someone/model")
        assert time.monotonic() - start < 15
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(BackboneError, match=r"not in the cache. HF_HUB_OFFLINE is set. Fetch it"):
            open_backbone("hf:someone/model")

    @pytest.mark.parametrize(
        ("kind", "advice"), [("GatedRepo", "hf auth login"), ("RepositoryNotFound", "Check its name")]
    )
    def test_a_refusal_of_the_hub_says_what_to_do(self, kind, advice, monkeypatch, tmp_path):
        import huggingface_hub
        from huggingface_hub import errors

        class Refused(getattr(errors, f"{kind}Error")):
            def __init__(self):
                Exception.__init__(self, "403 Client Error")

        def refuse(*_, local_files_only=False, **__):
            raise errors.LocalEntryNotFoundError("not cached") if local_files_only else Refused()

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        monkeypatch.setattr(download, "require_server", lambda *_: None)
        with pytest.raises(BackboneError, match=rf"'someone/model' could not be fetched from .*{advice}"):
            open_backbone("hf:someone/model")

    def test_models_without_what_reads_for_them(self):
        bert = OTHERS["bert"][0]()
        message = r"BertModel takes token numbers, and its tokeniser does not lie beside it. Save both in one folder"
        with pytest.raises(BackboneError, match=message):
            open_backbone(bert)
        with pytest.raises(BackboneError, match=r"ASTModel takes sounds, .*preprocessing=AudioPreprocessing"):
            open_backbone(OTHERS["ast"][0]())
        mae = made("ViTMAEModel", "ViTMAEConfig", **VISION)
        with pytest.raises(BackboneError, match=r"It hides most patches at random, others on every call. Open its enc"):
            open_backbone(mae())
        hiera = {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]}
        decoder = {"decoder_hidden_size": 8, "decoder_depth": 1, "decoder_num_heads": 1}
        message = r"It hides most patches at random, others on every call. Open its encoder alone, without hiding.$"
        with pytest.raises(BackboneError, match=message):
            open_backbone(made("HieraForPreTraining", "HieraConfig", **hiera, **decoder)())
        assert open_backbone(made("HieraModel", "HieraConfig", **hiera)()).depth == 5
        naflex = made("Siglip2VisionModel", "Siglip2VisionConfig", **{**VISION, "num_patches": 16})
        with pytest.raises(BackboneError, match=r"It takes sequences of patches of changing size \(NaFlex\)"):
            open_backbone(naflex())

    def test_a_damaged_processor(self, tmp_path):
        saved(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text("{")
        with pytest.raises(BackboneError, match=r"The image processor in .* could not be loaded"):
            open_backbone(f"hf:{tmp_path}")


def test_nothing_of_transformers_is_changed_for_good(tmp_path, capfd):
    from transformers.utils import logging

    saved(tmp_path, "hf_vit_classifier")
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    open_backbone(f"hf:{tmp_path}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    out, err = capfd.readouterr()
    assert not out and "Loading weights" not in err and "MISSING" not in err


def test_a_detector_is_loaded_again_by_its_name(tmp_path):
    saved(tmp_path / "model", processor=transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}))
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (24, 70, 70, 3), dtype=np.uint8)
    noise[12:] = noise[12:] // 4 + 90  # dull ones are the fakes
    labels = np.repeat([0, 1], 12)
    detector = dna_probe.fit(f"hf:{tmp_path / 'model'}", (list(noise), labels), shots=4)
    detector.save(tmp_path / "detector")
    again = dna_probe.load(tmp_path / "detector")
    assert again.backbone.spec == f"hf:{(tmp_path / 'model').resolve()}"
    np.testing.assert_array_equal(again.predict_proba(list(noise)), detector.predict_proba(list(noise)))


def test_a_model_can_be_trained_after_it_was_probed():
    """BEiT keeps its table of positions for all models of one size: made in inference mode, it would be of no use."""
    model = made("BeitModel", "BeitConfig", **{**VISION, "image_size": 80, "use_relative_position_bias": True})()
    backbone = open_backbone(model)
    with torch.inference_mode(), backbone.visiting({backbone.layers[0].name: lambda _: None}, stop=False) as run:
        run(pixels(side=80))
    assert not torch.is_inference_mode_enabled()
    model(pixels(side=80)).last_hidden_state.square().mean().backward()
    assert model.layers[0].relative_position_bias.relative_position_bias_table.grad.abs().sum() > 0


def test_a_timm_model_of_transformers_is_a_timm_model():
    wrapped = transformers.TimmWrapperModel(transformers.TimmWrapperConfig(architecture="test_vit", num_labels=0))
    backbone = open_backbone(wrapped)
    assert backbone.module is wrapped.timm_model
    assert backbone.preprocessing == open_backbone(wrapped.timm_model).preprocessing
    processor = SimpleNamespace(data_config={"input_size": (3, 160, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert read_processor(processor)[0] == Preprocessing((160, 160), mean=(0.5,) * 3, std=(0.5,) * 3)
