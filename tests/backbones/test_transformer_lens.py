"""TransformerLens's cache and hooks over any backbone, and its bridged models as backbones."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import transformer_lens
import transformers
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from dna_probe.audio.preprocessing import AudioPreprocessing
from dna_probe.backbones import open_backbone
from dna_probe.backbones.checking import check_backbone
from dna_probe.backbones.contract import Backbone
from dna_probe.backbones.transformer_lens import as_hooked, bridge, is_bridge, name_of, to_activation_cache
from dna_probe.errors import BackboneError, SiteError
from dna_probe.hooks import frozen
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.texts.preprocessing import TextPreprocessing

from .. import tiny_language
from .test_contract import sites_but_patterns, state_of
from .zoo import backbone_of, pixels_for
from .zoo_huggingface import HF_CASES, VISION


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A second thread costs models of this size more than it helps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Over any backbone


@pytest.fixture(params=["vit", "swin", "convnext", "own_tokens", "own_convolutions"])
def backbone(request):
    return backbone_of(request.param)


@pytest.fixture
def vit():
    return backbone_of("deit_distilled")


def plain_output(backbone, pixels):
    with torch.no_grad(), frozen(backbone.module):
        return backbone.module(pixels)


def test_caching_returns_the_output_and_copies_of_what_fired(backbone):
    pixels, names = pixels_for(backbone, 2), sites_but_patterns(backbone)
    before = state_of(backbone.module)
    with torch.no_grad():
        output, cached = as_hooked(backbone).run_with_cache(pixels, names_filter=names)
    assert type(cached) is transformer_lens.ActivationCache and list(cached.keys()) == names
    assert torch.equal(output, plain_output(backbone, pixels))
    for name, activation in backbone.capture(pixels, names).items():
        # Not overwritten by a module in place behind the site, and of the same numbers in the shape of TransformerLens.
        assert torch.equal(cached[name].reshape(activation.shape), activation)
    assert state_of(backbone.module) == before


def test_hook_points_are_called_like_the_sites_and_the_model_is_no_part_of_them(backbone):
    facade = as_hooked(backbone)
    assert isinstance(facade, transformer_lens.HookedRootModule)
    assert set(facade.hook_dict) == set(backbone.sites)
    assert not list(facade.parameters()) and facade.cfg.n_layers == backbone.depth
    assert torch.equal(facade(pixels_for(backbone, 1)), plain_output(backbone, pixels_for(backbone, 1)))


def test_shorthands_of_the_cache_work(vit):
    _, cached = as_hooked(vit).run_with_cache(pixels_for(vit, 2))
    assert cached["resid_post", -1].shape == (2, 18, 48)
    assert cached["post", 1].shape == (2, 18, 192)
    assert cached["z", 0].shape == (2, 18, 3, 16)
    torch.testing.assert_close(cached["pattern", 2].sum(-1), torch.ones(2, 3, 18))


def test_hooks_edit_what_passes_and_are_gone_after(vit):
    facade, pixels = as_hooked(vit), pixels_for(vit, 2)
    seen = []

    def silence(activation, hook):
        seen.append((hook.name, activation.shape))
        return torch.zeros_like(activation)

    plain = plain_output(vit, pixels)
    before = state_of(vit.module)
    with torch.no_grad():
        edited = facade.run_with_hooks(pixels, fwd_hooks=[("blocks.1.attn.hook_z", silence)])
        with vit.visiting({"blocks.1.attn.hook_z": torch.zeros_like}, stop=False) as run:
            by_hand = run(pixels)
    assert seen == [("blocks.1.attn.hook_z", (2, 18, 3, 16))]
    assert torch.equal(edited, by_hand) and not torch.equal(edited, plain)
    assert torch.equal(facade(pixels), plain)
    assert state_of(vit.module) == before


def test_a_hook_on_a_point_stays_until_it_is_reset(vit):
    facade, pixels = as_hooked(vit), pixels_for(vit, 1)
    facade.add_hook("blocks.0.hook_resid_post", lambda activation, hook: 2 * activation)
    facade.blocks[2].mlp.hook_post.add_hook(lambda activation, hook: 0 * activation)
    assert not torch.equal(facade(pixels), plain_output(vit, pixels))
    facade.reset_hooks()
    assert torch.equal(facade(pixels), plain_output(vit, pixels))


def test_backward_hooks_see_the_gradient(vit):
    facade, pixels, found = as_hooked(vit), pixels_for(vit, 2).requires_grad_(), {}
    last = vit.layers[-1].name
    with facade.hooks(bwd_hooks=[(last, lambda gradient, hook: found.update({hook.name: gradient.clone()}))]):
        facade(pixels).square().sum().backward()
    kept = {}
    with torch.enable_grad(), vit.visiting({last: lambda x: kept.update({last: x})}, stop=False) as run:
        run(pixels.detach().requires_grad_()).square().sum().backward(inputs=[kept[last]])
    torch.testing.assert_close(found[last], kept[last].grad)


def test_nothing_is_left_after_a_hook_that_fails(vit):
    def fail(activation, hook):
        raise KeyboardInterrupt

    facade, before = as_hooked(vit), state_of(vit.module)
    with pytest.raises(KeyboardInterrupt):
        facade.run_with_hooks(pixels_for(vit, 1), fwd_hooks=[("blocks.1.hook_resid_post", fail)])
    assert state_of(vit.module) == before
    assert torch.equal(facade(pixels_for(vit, 1)), plain_output(vit, pixels_for(vit, 1)))


def test_a_name_or_filter_that_fits_nothing_is_refused(vit):
    facade, pixels = as_hooked(vit), pixels_for(vit, 1)
    for run in (
        lambda: facade.run_with_cache(pixels, names_filter=["blocks.1.hook_resid_post", "blocks.1.hook_resid_pots"]),
        lambda: facade.run_with_hooks(pixels, fwd_hooks=[("blocks.1.hook_resid_pots", print)]),
        lambda: facade.add_hook("blocks.1.hook_resid_pots", print),
        lambda: to_activation_cache({"blocks.1.hook_resid_pots": pixels}, vit),
    ):
        with pytest.raises(SiteError, match=r"Did you mean 'blocks.1.hook_resid_post'"):
            run()
    with pytest.raises(SiteError, match="takes no site"):
        facade.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_q"))
    with pytest.raises(SiteError, match="No sites were asked for"):
        facade.run_with_cache(pixels, names_filter=[])


def test_what_was_captured_becomes_a_cache(vit):
    pixels = pixels_for(vit, 2)
    cached = vit.to_activation_cache(pixels)
    assert type(cached) is transformer_lens.ActivationCache and list(cached.keys()) == list(vit.sites)
    assert cached["z", 1].shape == (2, 18, 3, 16)
    captured = vit.capture(pixels, ["blocks.0.hook_resid_post"])
    assert to_activation_cache(captured, vit)["resid_post", 0] is captured["blocks.0.hook_resid_post"]
    assert list(vit.to_activation_cache(pixels, ["blocks.0.mlp.hook_post"]).keys()) == ["blocks.0.mlp.hook_post"]


# Bridges


def images(size=64):
    return Preprocessing(input_size=(size, size))


def words():
    return TextPreprocessing(tiny_language.tokeniser())


def waves():
    return AudioPreprocessing(tiny_language.waveform_extractor(), seconds=0.5)


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
LANGUAGE = {**SMALL, "vocab_size": 60, "num_key_value_heads": 3}


def made(model, configuration, **settings):
    def make():
        config = getattr(transformers, configuration)(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(transformers, model)(config).eval()

    return make


def llava(model="LlavaModel", tower="CLIPVisionConfig"):
    def make():
        vision = getattr(transformers, tower)(**{**VISION, "num_hidden_layers": 2})
        text = transformers.LlamaConfig(**LANGUAGE)
        return made(model, "LlavaConfig", vision_config=vision, text_config=text, image_token_index=59)()

    return make


QWEN = made(
    "Qwen2_5_VLModel",
    "Qwen2_5_VLConfig",
    vision_config={"depth": 2, "hidden_size": 24, "num_heads": 3, "intermediate_size": 48, "out_hidden_size": 24},
    text_config={**LANGUAGE, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
)
GATED = {**VISION, "use_swiglu_ffn": True}
BRIDGED = {
    "vit": (HF_CASES["hf_vit"].make, images),
    "vit_classifier": (HF_CASES["hf_vit_classifier"].make, images),
    "deit": (HF_CASES["hf_deit"].make, images),
    "dinov2": (HF_CASES["hf_dinov2"].make, images),
    "dinov2_registers": (HF_CASES["hf_dinov2_registers"].make, images),
    "dinov2_classifier": (made("Dinov2ForImageClassification", "Dinov2Config", **GATED), images),
    "bert": (tiny_language.bert, words),
    "bert_masked": (made("BertForMaskedLM", "BertConfig", vocab_size=60, **SMALL), words),
    "roberta": (made("RobertaModel", "RobertaConfig", vocab_size=60, **SMALL), words),
    "gpt2": (tiny_language.gpt, words),
    "llama": (made("LlamaForCausalLM", "LlamaConfig", **LANGUAGE), words),
    "ast": (tiny_language.ast, lambda: AudioPreprocessing(tiny_language.ast_extractor(), seconds=1.0)),
    "hubert": (tiny_language.hubert, waves),
    "wav2vec2": (tiny_language.wav2vec2, waves),
    "llava_language": (llava(), words),
    "qwen_language": (QWEN, words),
}


@pytest.mark.parametrize("name", BRIDGED)
def test_a_bridged_model_has_the_sites_and_numbers_of_the_model_itself(name):
    make, takes = BRIDGED[name]
    model, preprocessing = make(), takes()
    plain = Backbone(model, preprocessing)
    samples = preprocessing.trial(3)
    expected = plain.capture(samples, list(plain.sites))
    switch = model.config._attn_implementation
    bridged = Backbone(bridge(model), preprocessing)
    assert set(bridged.sites) == set(plain.sites)
    assert bridged.grid == plain.grid and bridged.num_prefix_tokens == plain.num_prefix_tokens
    points = dict(bridged.module.named_modules())
    for site in bridged.sites.values():
        assert isinstance(points[site.module], AttentionBridge if site.part else HookPoint)
        twin = plain.sites[site.name]
        assert (site.width, site.heads, site.class_token) == (twin.width, twin.heads, twin.class_token)
    for site, activation in bridged.capture(samples, list(bridged.sites)).items():
        torch.testing.assert_close(activation, expected[site], rtol=1e-4, atol=1e-5)
    assert [check.told for check in check_backbone(bridged) if check.verdict != "yes"] == []
    # Fused attention is off only while patterns are read.
    assert model.config._attn_implementation == switch == "sdpa"


@pytest.mark.parametrize(("tower", "prefix"), [("CLIPVisionConfig", 1), ("SiglipVisionConfig", 0)])
def test_the_tower_of_a_model_for_images_and_texts_is_probed_on_images(tower, prefix):
    model = llava(tower=tower)()
    plain = Backbone(model.vision_tower, images())
    pixels = images().trial(2)
    expected = plain.capture(pixels, list(plain.sites))
    bridged = Backbone(bridge(model), images())
    assert bridged.grid == (4, 4) and bridged.num_prefix_tokens == prefix
    found = bridged.capture(pixels, list(bridged.sites))
    assert set(found) == set(expected) and len(found) == 2 * 4
    for site, activation in found.items():
        torch.testing.assert_close(activation, expected[site], rtol=1e-4, atol=1e-5)
    assert [check.told for check in check_backbone(bridged) if check.verdict != "yes"] == []


def test_a_tower_that_takes_no_images_says_what_can_be_probed():
    with pytest.raises(BackboneError, match=r"patches cut beforehand .*grid_thw.* Probe its language blocks"):
        Backbone(bridge(QWEN()), images())


def test_what_as_hooked_gave_is_no_model(vit):
    for given in ({}, {"preprocessing": images()}):
        with pytest.raises(BackboneError, match=r"This is what as_hooked made of a backbone. Give the backbone itself"):
            open_backbone(as_hooked(vit), **given)


def test_a_hooked_module_of_ones_own_says_what_it_takes():
    class Own(transformer_lens.HookedRootModule):
        def __init__(self):
            super().__init__()
            self.inner = HF_CASES["hf_vit"].make()
            self.setup()

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(BackboneError, match=r"Own does not say what it takes. .*Pass preprocessing="):
        open_backbone(Own())
    assert open_backbone(Own(), preprocessing=images()).depth == 3


def test_a_model_without_an_adapter_says_the_way_out():
    with pytest.raises(BackboneError, match=r"TransformerLens 4\S+ cannot bridge CLIPVisionModel.*\(hf:\.\.\.\)"):
        bridge(HF_CASES["hf_clip"].make())


def test_patterns_can_be_edited_where_attention_uses_them_and_nowhere_else():
    used, returned = (Backbone(bridge(make()), words()) for make in (tiny_language.gpt, tiny_language.bert))
    edit = {"blocks.1.attn.hook_pattern": torch.zeros_like}
    tokens = words().trial(2)
    with torch.no_grad(), used.visiting(edit, stop=False) as run:
        edited = run(tokens)
    assert not torch.equal(edited.last_hidden_state, used.module(used.cast(tokens)).last_hidden_state)
    with pytest.raises(SiteError, match="cannot be edited"), returned.visiting(edit) as run:
        run(tokens)


def test_the_bridge_of_a_user_is_left_as_it_was():
    model = HF_CASES["hf_vit"].make().train()
    theirs = bridge(model)
    seen = []
    theirs.add_hook("blocks.1.hook_resid_post", lambda activation, hook: seen.append(hook.name))
    # The first pass of a model of transformers makes it hook itself.
    theirs(torch.from_numpy(images().trial(1)))
    before = state_of(model)
    backbone = Backbone(theirs, images())
    backbone.capture(images().trial(2), list(backbone.sites))
    assert state_of(model) == before
    assert seen and is_bridge(theirs) and not is_bridge(model) and name_of(theirs) == "ViTModel"


def test_a_copy_of_a_bridged_model_is_one():
    backbone = Backbone(bridge(tiny_language.gpt()), words())
    copied = Backbone(deepcopy(backbone.module), words())
    tokens, names = words().trial(2), list(backbone.sites)
    found = copied.capture(tokens, names)
    for parameter in backbone.module.parameters():
        parameter.data.zero_()
    again = copied.capture(tokens, names)
    assert all(torch.equal(found[name], again[name]) for name in names)


@pytest.fixture
def saved(tmp_path):
    def save(model, *readers):
        for part in (model, *readers):
            part.save_pretrained(tmp_path)
        return tmp_path

    return save


def image_processor():
    from transformers import CLIPImageProcessor

    side = {"height": 64, "width": 64}
    return CLIPImageProcessor(size=side, crop_size=side, image_mean=[0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("make", "reader"),
    [
        (HF_CASES["hf_vit"].make, image_processor),
        (HF_CASES["hf_dinov2"].make, image_processor),
        (tiny_language.bert, tiny_language.tokeniser),
        (tiny_language.wav2vec2, tiny_language.waveform_extractor),
    ],
)
def test_a_folder_opens_as_it_does_without_transformer_lens(saved, make, reader):
    folder = saved(make(), reader())
    bridged, plain = open_backbone(f"tl:{folder}"), open_backbone(f"hf:{folder}")
    assert bridged.preprocessing.to_json() == plain.preprocessing.to_json()
    assert bridged.spec == f"tl:{folder}" and bridged.name == bridged.spec
    assert all(isinstance(bridged.module.get_submodule(site.module), HookPoint) for site in bridged.layers)
    samples = bridged.preprocessing.trial(2)
    expected, names = plain.capture(samples, list(plain.sites)), list(bridged.sites)
    for name, activation in bridged.capture(samples, names).items():
        torch.testing.assert_close(activation, expected[name], rtol=1e-4, atol=1e-5)
    assert open_backbone(bridged.spec).weight_hash == bridged.weight_hash


def test_a_folder_of_two_modalities_opens_as_either(saved):
    folder = saved(llava("LlavaForConditionalGeneration")(), image_processor(), tiny_language.tokeniser())
    tower, language = open_backbone(f"tl:{folder}"), open_backbone(f"tl:{folder}#language")
    assert tower.notes == ("of a model for images and texts the tower for images is probed",) and not language.notes
    assert tower.preprocessing.modality == "image" and tower.preprocessing.mean == (0.1, 0.2, 0.3)
    assert language.preprocessing.modality == "text" and language.spec == f"tl:{folder}#language"
    assert {type(backbone.mlp(1)) for backbone in (tower, language)} == {type(tower.layers[0])}
    assert (tower.layers[0].width, language.layers[0].width) == (48, 24)


def test_a_bridge_opens_with_its_own_tokeniser():
    model = made("GPT2LMHeadModel", "GPT2Config", vocab_size=60, n_embd=24, n_layer=2, n_head=3)()
    theirs = bridge(model)
    theirs.tokenizer = tiny_language.bare_tokeniser()
    backbone = open_backbone(theirs)
    assert backbone.name == "GPT2LMHeadModel" and backbone.module is model
    assert backbone.preprocessing.tokeniser is tiny_language.bare_tokeniser()
    control = open_backbone(theirs, random_weights=True)
    assert control.weight_hash != backbone.weight_hash and list(control.sites) == list(backbone.sites)
    assert open_backbone(backbone, random_weights=True).weight_hash == control.weight_hash


def test_opening_a_timm_model_does_not_import_transformer_lens():
    script = (
        "import sys, dna_probe.backbones as b\n"
        "backbone = b.open_backbone('test_vit', random_weights=True)\n"
        "backbone.capture(backbone.preprocessing.trial(1), list(backbone.sites))\n"
        "assert 'timm' in sys.modules and 'transformer_lens' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
