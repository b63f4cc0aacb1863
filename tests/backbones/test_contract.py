"""One contract for every backbone: what is captured is true, and the model is left as it was found."""

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from dna_probe.backbones.contract import Backbone, hash_state
from dna_probe.errors import BackboneError, SiteError
from dna_probe.hooks import frozen

from .zoo import ATTENTION, CASES, TIMM, backbone_of, model_of, pixels_for


def state_of(model: nn.Module) -> dict:
    """Everything that must not change, by value."""
    return {
        "weights": hash_state(model.state_dict()),
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "no_grad_left": [parameter.grad is None for parameter in model.parameters()],
        "fused": [getattr(module, "fused_attn", None) for module in model.modules()],
        "hooks": [
            (
                len(m._forward_hooks),
                len(m._forward_pre_hooks),
                len(m._backward_hooks),
                len(m._forward_hooks_with_kwargs),
            )
            for m in model.modules()
        ],
        "places": [(parameter.dtype, parameter.device, parameter.data_ptr()) for parameter in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def sites_but_patterns(backbone: Backbone) -> list[str]:
    return [site.name for site in backbone.sites.values() if site.kind != "pattern"]


def evaluated(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        output = model(pixels)
    for module, flag in flags:
        module.training = flag
    return output


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def backbone(request, case):
    return backbone_of(next(name for name, value in CASES.items() if value is case))


def test_backbone_is_described_rightly(backbone, case):
    assert backbone.depth == case.layers == len(backbone.layers)
    assert [site.layer for site in backbone.layers] == list(range(case.layers))
    assert {site.layout for site in backbone.layers} == {case.layout}
    assert backbone.num_prefix_tokens == case.prefix
    assert {site.class_token for site in backbone.layers} == {case.class_token}
    assert {site.default_reduction for site in backbone.layers} == {"cls" if case.class_token else "mean"}
    assert backbone.grid == case.grid
    for layer in range(case.layers):
        assert (backbone.mlp(layer) is not None) == case.mlp
        assert (backbone.pattern(layer) is not None) == case.pattern
        # In these families the same modules have both.
        assert (backbone.heads(layer) is not None) == case.pattern
    assert all(name == site.name for name, site in backbone.sites.items())
    assert f"{case.layers} layers" in repr(backbone)


@pytest.mark.parametrize("count", [1, 3])
def test_captured_shapes_are_those_of_the_sites(backbone, case, count):
    captured = backbone.capture(pixels_for(backbone, count), list(backbone.sites))
    assert list(captured) == list(backbone.sites)
    for name, activation in captured.items():
        site = backbone.sites[name]
        axis = 1 if site.layout == "nchw" or site.kind == "pattern" else -1
        assert activation.shape[0] == count
        assert activation.shape[axis] == site.width
        assert activation.ndim == {"tokens": 3, "nhwc": 4, "nchw": 4, "vector": 2}[site.layout] + (
            site.kind == "pattern"
        )
        assert activation.dtype == torch.float32
        assert torch.isfinite(activation).all()
        assert not activation.requires_grad


def test_sites_are_in_firing_order(backbone):
    order = []
    visit = {name: lambda _, name=name: order.append(name) for name in reversed(backbone.sites)}
    with torch.no_grad(), backbone.visiting(visit) as run:
        run(pixels_for(backbone, 1))
    assert order == list(backbone.sites)


def test_images_do_not_leak_into_each_other(backbone):
    last = backbone.layers[-1].name
    pixels = pixels_for(backbone, 3)
    together = backbone.capture(pixels, [last])[last]
    alone = torch.cat([backbone.capture(pixels[i : i + 1], [last])[last] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_model_is_left_as_found(backbone):
    model = backbone.module
    foreign = model.register_forward_hook(lambda *_: None)
    before = state_of(model)
    noise = torch.random.get_rng_state()
    backbone.capture(pixels_for(backbone, 3), list(backbone.sites))
    assert state_of(model) == before
    assert torch.equal(noise, torch.random.get_rng_state())
    # Discovery must not leave a trace either.
    Backbone(model, backbone.preprocessing)
    assert state_of(model) == before
    foreign.remove()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_found_after_a_failure(backbone, error):
    before = state_of(backbone.module)

    def fail(activation):
        raise error("on purpose")

    with pytest.raises(error), backbone.visiting({name: fail for name in list(backbone.sites)[-1:]}) as run:
        run(pixels_for(backbone, 1))
    with pytest.raises(error), backbone.visiting({name: lambda _: None for name in backbone.sites}):
        raise error("on purpose, between batches")
    assert state_of(backbone.module) == before


def test_output_is_bit_identical_under_hooks(backbone):
    pixels = pixels_for(backbone, 3)
    expected = evaluated(backbone.module, pixels)
    visit = {name: lambda _: None for name in sites_but_patterns(backbone)}
    with torch.no_grad(), backbone.visiting(visit, stop=False) as run:
        output = run(pixels)
    # torch's own MultiheadAttention rounds differently when parameters need no gradient, hooks or not.
    if any(isinstance(module, nn.MultiheadAttention) for module in backbone.module.modules()):
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
        with torch.no_grad(), frozen(backbone.module):
            expected = backbone.module(pixels)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_early_stop_gives_the_same_numbers(backbone):
    pixels = pixels_for(backbone, 3)
    names = [site.name for site in backbone.layers[: max(1, backbone.depth // 2)]]
    calls = []
    handle = backbone.module.register_forward_hook(lambda *_: calls.append(1))
    stopped = backbone.capture(pixels, names)
    assert not calls, "the forward pass went on to its end"
    whole = backbone.capture(pixels, names, stop=False)
    assert calls == [1]
    handle.remove()
    assert all(torch.equal(stopped[name], whole[name]) for name in names)


def test_captures_are_what_the_module_returned_before_anything_overwrote_it(backbone):
    """Against a clone taken by a hook that runs before ours; in-place modules downstream would change a view."""
    pixels = pixels_for(backbone, 3)
    site = backbone.layers[0]
    seen = []
    module = backbone.module.get_submodule(site.module)
    handle = module.register_forward_hook(
        lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())
    )
    captured = backbone.capture(pixels, [site.name], stop=False)[site.name]
    handle.remove()
    assert torch.equal(captured, seen[0])


def test_edit_reaches_the_output(backbone):
    pixels = pixels_for(backbone, 3)
    for site in (backbone.layers[0], backbone.mlp(0) or backbone.layers[-1]):
        with torch.no_grad(), backbone.visiting({site.name: lambda a: torch.zeros_like(a)}, stop=False) as run:
            edited = run(pixels)
        assert not torch.allclose(edited, evaluated(backbone.module, pixels))


def test_gradients_flow_between_sites(backbone):
    first, last = backbone.layers[0].name, backbone.layers[-1].name
    live = {}

    def start(activation):
        live[first] = activation.detach().clone().requires_grad_(True)
        return live[first].clone()

    with torch.enable_grad(), backbone.visiting({first: start, last: lambda a: live.__setitem__(last, a)}) as run:
        run(pixels_for(backbone, 3))
        (gradient,) = torch.autograd.grad(live[last].float().square().mean(), live[first])
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.module.parameters())


def test_captured_memory_is_freed(backbone):
    captured = backbone.capture(pixels_for(backbone, 1), list(backbone.sites))
    watched = [weakref.ref(activation) for activation in captured.values()]
    kept = []
    with backbone.visiting({backbone.layers[-1].name: lambda a: kept.append(weakref.ref(a))}) as run, torch.no_grad():
        run(pixels_for(backbone, 1))
    del captured
    gc.collect()
    assert not [ref for ref in watched + kept if ref() is not None]


def test_hash_sees_one_bit_and_nothing_else(backbone):
    twin = Backbone(deepcopy(backbone.module), backbone.preprocessing)
    assert twin.weight_hash == backbone.weight_hash
    parameter = next(p for p in reversed(list(twin.module.parameters())) if p.dtype == torch.float32)
    with torch.no_grad():
        parameter.view(torch.int32).view(-1)[0] ^= 1
    assert twin.weight_hash != backbone.weight_hash
    assert hash_state(twin.module.state_dict()) == twin.weight_hash
    assert twin.identity()["weight_hash"] == twin.weight_hash
    assert twin.identity()["spec"] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["vit", "own_convolutions", "own_tokens"])
def test_half_precision_models(name, dtype):
    model = deepcopy(model_of(name)).to(dtype)
    backbone = Backbone(model, backbone_of(name).preprocessing)
    captured = backbone.capture(pixels_for(backbone, 3), [site.name for site in backbone.layers])
    full = backbone_of(name).capture(pixels_for(backbone, 3), [site.name for site in backbone.layers])
    for key, activation in captured.items():
        assert activation.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(activation.flatten(), full[key].flatten(), dim=0) > 0.99
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", TIMM)
def test_layers_equal_timms_own_intermediates(name):
    backbone = backbone_of(name)
    model, pixels = deepcopy(backbone.module).eval(), pixels_for(backbone, 3)
    captured = list(backbone.capture(pixels, [site.name for site in backbone.layers], stop=False).values())
    with torch.no_grad():
        if backbone.grid:
            pairs = model.forward_intermediates(
                pixels, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
            )
            expected = [torch.cat([prefix, patches], 1) for patches, prefix in pairs]
            assert len(expected) == len(captured)
        else:
            expected = model.forward_intermediates(pixels, norm=False, intermediates_only=True)
    if name == "swin":  # timm gives stages there, as (n, channels, height, width)
        captured = [activation.permute(0, 3, 1, 2) for activation in captured]
    found = [any(a.shape == b.shape and torch.equal(a, b) for b in expected) for a in captured]
    if backbone.grid:
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    elif name in ("swin", "mobilenetv3"):  # timm names the last of the blocks of one resolution only
        assert sum(found) >= 3
    else:
        assert all(found)


@pytest.mark.parametrize("name", ATTENTION)
def test_patterns_equal_the_formula(name):
    """softmax(q k^T / sqrt d) from the block's own weights and input; the model itself runs fused."""
    backbone = backbone_of(name)
    pixels = pixels_for(backbone, 3)
    assert all(block.attn.fused_attn for block in backbone.module.blocks)
    inputs = {}
    handles = [
        block.attn.register_forward_pre_hook(lambda m, args, k=k: inputs.__setitem__(k, args[0].clone()))
        for k, block in enumerate(backbone.module.blocks)
    ]
    sites = [backbone.pattern(layer) for layer in range(backbone.depth)]
    captured = backbone.capture(pixels, [site.name for site in sites])
    for handle in handles:
        handle.remove()
    length = backbone.grid[0] * backbone.grid[1] + backbone.num_prefix_tokens
    for k, site in enumerate(sites):
        pattern = captured[site.name]
        assert pattern.shape == (3, 3, length, length)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 3, length), rtol=0, atol=1e-5)
        torch.testing.assert_close(pattern, formula(backbone.module, k, inputs[k]), rtol=0, atol=1e-5)
    assert all(block.attn.fused_attn for block in backbone.module.blocks)


def formula(model: nn.Module, k: int, x: torch.Tensor) -> torch.Tensor:
    attention = model.blocks[k].attn
    n, length, width = x.shape
    x, size = x.double(), width // 3
    weight = attention.qkv.weight.double()
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.double()
    else:
        bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias]).double()
    q, key = (
        (x @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width])
        .view(n, length, 3, size)
        .transpose(1, 2)
        for i in (0, 1)
    )
    if hasattr(model, "rope"):
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        rope, prefix = model.rope.get_embed().double(), model.num_prefix_tokens
        q, key = (torch.cat([t[:, :, :prefix], apply_rot_embed_cat(t[:, :, prefix:], rope)], 2) for t in (q, key))
    return ((q @ key.transpose(-1, -2)) / size**0.5).softmax(-1).float()


def test_mlp_site_holds_the_hidden_units():
    backbone = backbone_of("vit")
    pixels = pixels_for(backbone, 3)
    block = deepcopy(backbone.module).eval().blocks[1]
    captured = backbone.capture(pixels, ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"])
    with torch.no_grad():
        x = captured["blocks.0.hook_resid_post"]
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(x + block.attn(block.norm1(x)))))
    torch.testing.assert_close(captured["blocks.1.mlp.hook_post"], hidden)


@pytest.mark.parametrize("name", ["vit", "deit_distilled"])
def test_heads_site_holds_the_heads_side_by_side(name):
    """Unit k is of head k // (width / heads): each head's pattern times its values, from the block's own weights."""
    backbone = backbone_of(name)
    pixels, inputs = pixels_for(backbone, 3), []
    block, site = backbone.module.blocks[1], backbone.heads(1)
    handle = block.attn.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    captured = backbone.capture(pixels, [site.name])[site.name]
    handle.remove()
    pattern = formula(backbone.module, 1, inputs[0])
    width, weight, bias = site.width, block.attn.qkv.weight, block.attn.qkv.bias
    values = inputs[0] @ weight[2 * width :].T + bias[2 * width :]
    assert (site.kind, site.heads, site.width) == ("heads", 3, 48)
    for unit in (0, 15, 16, 47):
        head = site.head_of(unit)
        assert head == unit // 16
        expected = (pattern[:, head] @ values[..., unit, None])[..., 0]
        torch.testing.assert_close(captured[..., unit], expected, rtol=0, atol=1e-4)
    assert backbone.mlp(1).head_of(3) is None


def test_inplace_relu_does_not_reach_back_into_a_capture():
    """``bn1`` of a ResNet is overwritten by the in-place ReLU behind it: a view of it would have no negative value."""
    from dataclasses import replace

    backbone = backbone_of("resnet18")
    twin = Backbone(backbone.module, backbone.preprocessing)
    twin.sites["stages.0.hook_out"] = replace(twin.sites["stages.0.hook_out"], module="bn1")
    assert backbone.module.act1.inplace
    assert twin.capture(pixels_for(twin, 2), ["stages.0.hook_out"], stop=False)["stages.0.hook_out"].min() < -0.1


def test_unknown_or_no_sites():
    backbone = backbone_of("vit")
    with pytest.raises(
        SiteError, match=r"Unknown site 'blocks.1.hook_resid_pos'. Did you mean 'blocks.1.hook_resid_post'"
    ):
        backbone.capture(pixels_for(backbone, 1), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pos"])
    with pytest.raises(SiteError, match=r"No sites were asked for. Name at least one, for example blocks.2"):
        backbone.capture(pixels_for(backbone, 1), [])


def test_one_name_and_arrays_are_taken_too():
    backbone = backbone_of("own_tokens")
    pixels = pixels_for(backbone, 1)
    name = backbone.layers[0].name
    assert torch.equal(
        backbone.capture(pixels.numpy().astype("float64"), name)[name], backbone.capture(pixels, [name])[name]
    )


def test_wrappers_are_taken_off_and_models_compiled_in_place_refused():
    model, preprocessing = model_of("own_tokens"), backbone_of("own_tokens").preprocessing
    assert Backbone(nn.DataParallel(model), preprocessing).module is model
    assert Backbone(torch.compile(model), preprocessing).module is model
    compiled = deepcopy(model)
    compiled.compile()
    with pytest.raises(BackboneError, match=r"The model was compiled in place. Hooks do not run"):
        Backbone(compiled, preprocessing)
    partly = deepcopy(model)
    partly.trunk[1] = torch.compile(partly.trunk[1])
    with pytest.raises(BackboneError, match=r"The part 'trunk.1' of the model was compiled"):
        Backbone(partly, preprocessing)


@pytest.mark.real
@pytest.mark.parametrize(
    ("factory", "layers", "width"),
    [("deit_tiny_q3.py:build", 12, 192), ("cnns.py:mobilenetv2", 7, 320), ("cnns.py:squeezenet1_1", 9, 512)],
)
def test_real_weights(shared_data, factory, layers, width):
    from dna_probe.backbones import open_backbone

    backbone = open_backbone(f"{shared_data / 'weights'}/{factory}")
    assert backbone.depth == layers
    assert backbone.layers[-1].width == width
    assert backbone.preprocessing.input_size == (224, 224)
    assert backbone.preprocessing.crop_pct == pytest.approx(224 / 256)
    assert not backbone.notes
    assert backbone.name == factory
    captured = backbone.capture(pixels_for(backbone, 1), list(backbone.sites))
    for name, activation in captured.items():
        assert torch.isfinite(activation).all(), name
        if backbone.sites[name].kind == "pattern":  # saturated at 7 steps, so rows may sum to less than one
            assert activation.min() >= 0
            assert activation.max() <= 1
