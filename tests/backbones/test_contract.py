"""One contract for every backbone: what is captured is true, and the model is left as it was found."""

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from dna_probe.attention import summarise_pattern
from dna_probe.backbones import contract, open_backbone
from dna_probe.backbones.contract import Backbone, hash_state
from dna_probe.errors import BackboneError, SiteError
from dna_probe.hooks import frozen, nth_tensor
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.sites import Reading, patch_tokens

from .zoo import ATTENTION, CASES, TIMM, TokenModel, backbone_of, model_of, pixels_for


def state_of(model: nn.Module) -> dict:
    """Everything that must not change, by value."""
    return {
        "weights": hash_state(model.state_dict()),
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "no_grad_left": [parameter.grad is None for parameter in model.parameters()],
        "fused": [getattr(module, "fused_attn", None) for module in model.modules()],
        "checkpointing": [getattr(module, "grad_checkpointing", None) for module in model.modules()],
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
        output = nth_tensor(model(pixels), 0)
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
        assert (backbone.heads(layer) is not None) == (case.pattern if case.heads is None else case.heads)
    assert [note for note in backbone.notes if "attention" in note] == case.notes
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


def test_batches_of_any_size_give_the_same_numbers(backbone):
    """One by one, in threes with a shorter last batch, or all at once: images do not leak into each other."""
    pixels, names = pixels_for(backbone, 5), [site.name for site in backbone.layers]
    together = backbone.capture(pixels, names)
    for size in (1, 3):
        parts = [backbone.capture(batch, names) for batch in pixels.split(size)]
        for name in names:
            joined = torch.cat([part[name] for part in parts])
            torch.testing.assert_close(joined, together[name], rtol=1e-4, atol=1e-4)


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

    *before_it, last = backbone.sites
    visit = {name: lambda _: None for name in before_it} | {last: fail}
    with pytest.raises(error), backbone.visiting(visit) as run:
        run(pixels_for(backbone, 1))
    with pytest.raises(error), backbone.visiting({name: lambda _: None for name in backbone.sites}):
        raise error("on purpose, between batches")
    assert state_of(backbone.module) == before


def test_output_is_bit_identical_under_hooks(backbone):
    pixels = pixels_for(backbone, 3)
    visit = {name: lambda _: None for name in sites_but_patterns(backbone)}
    with torch.no_grad(), backbone.visiting(visit, stop=False) as run:
        output = nth_tensor(run(pixels), 0)
    with torch.no_grad(), frozen(backbone.module):
        torch.testing.assert_close(output, nth_tensor(backbone.module(pixels), 0), rtol=0, atol=0)
    # torch's linear layers may round differently once parameters need no gradient, hooks or not.
    exact = backbone not in (backbone_of("torchvision_vit"), backbone_of("davit"))
    torch.testing.assert_close(output, evaluated(backbone.module, pixels), rtol=0, atol=0 if exact else 1e-5)


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
    handle = module.register_forward_hook(lambda m, a, out: seen.append(nth_tensor(out, site.part).clone()))
    captured = backbone.capture(pixels, [site.name], stop=False)[site.name]
    handle.remove()
    assert torch.equal(captured, seen[0])


def test_edit_reaches_the_output(backbone):
    pixels = pixels_for(backbone, 3)
    for site in (backbone.layers[0], backbone.mlp(0) or backbone.layers[-1]):
        with torch.no_grad(), backbone.visiting({site.name: lambda a: torch.zeros_like(a)}, stop=False) as run:
            edited = nth_tensor(run(pixels), 0)
        assert not torch.allclose(edited, evaluated(backbone.module, pixels))


def gradient_between_layers(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    first, last = backbone.layers[0].name, backbone.layers[-1].name
    live = {}

    def start(activation):
        live[first] = activation.detach().clone().requires_grad_(True)
        return live[first].clone()

    def end(activation):
        live[last] = activation.float().square().mean()

    with torch.enable_grad(), backbone.visiting({first: start, last: end}) as run:
        run(pixels)
        return torch.autograd.grad(live[last], live[first])[0]


def test_gradients_flow_between_sites(backbone):
    assert gradient_between_layers(backbone, pixels_for(backbone, 3)).abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.module.parameters())


def test_captured_memory_is_freed(backbone):
    captured = backbone.capture(pixels_for(backbone, 1), list(backbone.sites))
    watched = [weakref.ref(activation) for activation in captured.values()]
    kept = []
    with backbone.visiting({backbone.layers[-1].name: lambda a: kept.append(weakref.ref(a))}) as run, torch.no_grad():
        run(pixels_for(backbone, 1))
    del captured
    if any(ref() is not None for ref in watched + kept):
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


def test_weights_are_hashed_once_for_as_long_as_they_stay(monkeypatch):
    backbone, hashed = open_backbone(TokenModel()), []
    monkeypatch.setattr(contract, "hash_state", lambda state: hashed.append(1) or hash_state(state))
    assert backbone.weight_hash == backbone.weight_hash == hash_state(backbone.module.state_dict())
    assert len(hashed) == 1
    backbone.module.head.bias = nn.Parameter(torch.ones(5))
    assert backbone.weight_hash == hash_state(backbone.module.state_dict())
    assert len(hashed) == 2


def test_deep_copies_are_read_alike_and_apart(backbone):
    """A copy gives the same numbers, also while the original is being read, and its hooks are its own."""
    twin, pixels, names = deepcopy(backbone), pixels_for(backbone, 2), list(backbone.sites)
    assert twin.sites == backbone.sites
    assert twin.module is not backbone.module
    expected, touched = backbone.capture(pixels, names), []
    with backbone.visiting({name: lambda _: touched.append(1) for name in names}):
        captured = twin.capture(pixels, names)
    assert not touched
    assert all(torch.equal(captured[name], expected[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(backbone, dtype):
    """The same sites, and numbers near those of float32, given as float32."""
    model = deepcopy(backbone.module).to(dtype)
    half, names, pixels = Backbone(model, backbone.preprocessing), list(backbone.sites), pixels_for(backbone, 3)
    assert half.sites == backbone.sites
    captured, full = half.capture(pixels, names), backbone.capture(pixels, names)
    for site in backbone.layers:
        found, expected = captured[site.name].flatten(), full[site.name].flatten()
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99
    assert {activation.dtype for activation in captured.values()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", [name for name in TIMM if name != "twins"])
def test_gradient_checkpointing_changes_nothing(name):
    """Layers that a checkpointed forward passes by, such as a ResNet's, are found all the same; gradients too."""
    backbone = backbone_of(name)
    model, names = deepcopy(backbone.module), list(backbone.sites)
    model.set_grad_checkpointing(True)
    checkpointed, pixels = Backbone(model, backbone.preprocessing), pixels_for(backbone, 3)
    assert checkpointed.sites == backbone.sites
    captured = checkpointed.capture(pixels, names)
    assert all(torch.equal(captured[name], value) for name, value in backbone.capture(pixels, names).items())
    assert torch.equal(gradient_between_layers(checkpointed, pixels), gradient_between_layers(backbone, pixels))
    assert any(getattr(module, "grad_checkpointing", False) for module in model.modules())


def intermediates(backbone: Backbone, pixels: torch.Tensor) -> list[torch.Tensor]:
    """What timm itself gives: tokens with their prefix where there are any, else (n, channels, height, width)."""
    ask = {"norm": False, "intermediates_only": True}
    if backbone.grid and backbone.layers[0].layout == "tokens":
        ask["output_fmt"] = "NLC"
    if backbone.num_prefix_tokens:
        ask["return_prefix_tokens"] = True
    with torch.no_grad(), frozen(backbone.module):
        found = backbone.module.forward_intermediates(pixels, **ask)
    return [torch.cat([entry[1], entry[0]], 1) for entry in found] if backbone.num_prefix_tokens else found


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding: where a tensor lies in memory may choose another kernel in the second pass."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TIMM)
def test_layers_equal_timms_own_intermediates(name):
    backbone, case = backbone_of(name), CASES[name]
    pixels = pixels_for(backbone, 3)
    captured = backbone.capture(pixels, [site.name for site in backbone.layers], stop=False).values()
    expected = intermediates(backbone, pixels)
    if backbone.grid:
        assert all(alike(a, b) for a, b in zip(captured, expected, strict=True))
    else:  # of several layers at one resolution timm gives the last
        rows = [patch_tokens(site, found) for site, found in zip(backbone.layers, captured, strict=True)]
        theirs = [found.flatten(2).transpose(1, 2) for found in expected]
        equal = [any(alike(a, b) for b in theirs) for a in rows]
        assert sum(equal) == (case.intermediates or case.layers)


@pytest.mark.parametrize(
    ("name", "count"), [("siglip", 0), ("vit", 1), ("deit_distilled", 2), ("registers_pooled", 4), ("dinov3", 5)]
)
def test_reductions_leave_prefix_tokens_out(name, count):
    """Against the patches and prefix tokens that timm tells apart."""
    backbone, case = backbone_of(name), CASES[name]
    pixels = pixels_for(backbone, 3)
    captured = backbone.capture(pixels, list(backbone.sites))
    assert backbone.num_prefix_tokens == count
    for site, tokens in zip(backbone.layers, intermediates(backbone, pixels), strict=True):
        prefix, patches = tokens[:, :count], tokens[:, count:]
        assert patches.shape[1] == backbone.grid[0] * backbone.grid[1]
        expected = {"mean": patches.mean(1), "max": patches.amax(1), "std": patches.std(1, correction=0)}
        expected["top"] = patches.sort(1, descending=True).values[:, :2].mean(1)
        if case.class_token:
            expected["cls"] = prefix[:, 0]
        for reduction, value in expected.items():
            torch.testing.assert_close(Reading(site, reduction).reduce(captured[site.name]), value)
        inside = [backbone.mlp(site.layer), backbone.heads(site.layer), backbone.pattern(site.layer)]
        assert {(s.prefix_tokens, s.class_token) for s in inside} == {(count, case.class_token)}
        map_ = summarise_pattern(captured[inside[-1].name], inside[-1], backbone.grid)["map"]
        pattern = captured[inside[-1].name][..., count:]
        looked = pattern[:, :, 0].mean(1) if case.class_token else pattern[:, :, count:].mean((1, 2))
        torch.testing.assert_close(map_, looked / looked.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", ATTENTION)
def test_patterns_equal_the_formula(name):
    """softmax(q k^T / sqrt d + bias) from the block's own weights and input; the model itself runs fused."""
    backbone = backbone_of(name)
    module, pixels = backbone.module, pixels_for(backbone, 3)
    sites = [backbone.pattern(layer) for layer in range(backbone.depth)]
    attentions = [module.get_submodule(site.module.removesuffix(".attn_drop")) for site in sites]
    fused = [getattr(attention, "fused_attn", None) for attention in attentions]
    assert all(fused) or name == "tnt"
    inputs = {}
    handles = [
        attention.register_forward_pre_hook(
            lambda m, args, kwargs, k=k: inputs.__setitem__(k, (args[0].clone(), kwargs.get("rope"))), with_kwargs=True
        )
        for k, attention in enumerate(attentions)
    ]
    captured = backbone.capture(pixels, [site.name for site in sites])
    for handle in handles:
        handle.remove()
    length = backbone.grid[0] * backbone.grid[1] + backbone.num_prefix_tokens
    rotary = any(path.endswith("rope") for path, _ in module.named_modules())
    for k, site in enumerate(sites):
        x, rope = inputs[k]
        pattern = captured[site.name]
        assert (rope is not None) == rotary
        assert pattern.shape == (3, 3, length, length)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 3, length), rtol=0, atol=1e-5)
        torch.testing.assert_close(pattern, formula(attentions[k], x, rope), rtol=0, atol=1e-5)
    assert [getattr(attention, "fused_attn", None) for attention in attentions] == fused


def formula(attention: nn.Module, x: torch.Tensor, rope: torch.Tensor | None = None) -> torch.Tensor:
    """Attention probabilities in float64: with separate or joint projections, normed queries, rotary or relative
    positions."""
    attention, x = deepcopy(attention).double().eval(), x.double()
    (n, length, _), heads = x.shape, attention.num_heads
    with torch.no_grad():
        q, k = (projected(attention, name, x).view(n, length, heads, -1).transpose(1, 2) for name in ("q", "k"))
        q, k = (getattr(attention, f"{name}_norm", nn.Identity())(t) for name, t in (("q", q), ("k", k)))
        if rope is not None:
            half = getattr(attention, "rotate_half", False)
            q, k = (rotated(t, rope.double(), attention.num_prefix_tokens, half) for t in (q, k))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        table = getattr(attention, "relative_position_bias_table", None)
        if table is not None:
            logits += table[attention.relative_position_index].permute(2, 0, 1)
        if getattr(attention, "rel_pos", None) is not None:
            logits += attention.rel_pos.get_bias()
    return logits.softmax(-1).float()


def projected(attention: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """Queries or keys, from a projection of their own or from a joint one, whose rows are those of q, k (and v)."""
    if hasattr(attention, "qk"):
        weight, bias, parts = attention.qk.weight, attention.qk.bias, 2
    elif attention.qkv is not None:
        weight, bias, parts = attention.qkv.weight, attention.qkv.bias, 3
    else:
        return getattr(attention, f"{name}_proj")(x)
    row = "qk".index(name)
    bias = getattr(attention, f"{name}_bias", None) if bias is None else bias.chunk(parts)[row]
    return nn.functional.linear(x, weight.chunk(parts)[row], bias)


def rotated(t: torch.Tensor, rope: torch.Tensor, prefix: int, half: bool) -> torch.Tensor:
    """Patches turned by their angles: in pairs of neighbouring channels, or of the two halves."""
    (sine, cosine), patches = rope.chunk(2, -1), t[:, :, prefix:]
    if half:
        first, second = patches.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], -1).flatten(-2)
    return torch.cat([t[:, :, :prefix], patches * cosine + turned * sine], 2)


def test_patterns_where_the_class_token_joins_late():
    """ConViT: gated attention over patches alone, then attention with a class token, on the same grid."""
    import timm

    settings = {"img_size": 64, "depth": 3, "local_up_to_layer": 2, "embed_dim": 16, "num_heads": 3}
    backbone = Backbone(timm.create_model("convit_tiny", **settings), Preprocessing((64, 64)))
    patterns = [backbone.pattern(layer) for layer in range(3)]
    assert [(site.prefix_tokens, site.class_token) for site in patterns] == [(0, False), (0, False), (1, True)]
    assert backbone.grid == (4, 4)
    for name, pattern in backbone.capture(pixels_for(backbone, 2), [site.name for site in patterns]).items():
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]), rtol=0, atol=1e-5)
        summary = summarise_pattern(pattern, backbone.sites[name], backbone.grid)
        assert summary["map"].shape == (2, 16)


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
    pattern = formula(block.attn, inputs[0])
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
    message = r"A batch is one tensor, not a dictionary. Give inputs\['pixel_values'\] or inputs\['input_ids'\]"
    with pytest.raises(SiteError, match=message):
        backbone.capture({"pixel_values": pixels_for(backbone, 1)}, list(backbone.sites))


def test_one_name_and_arrays_are_taken_too():
    backbone = backbone_of("own_tokens")
    pixels = pixels_for(backbone, 1)
    name = backbone.layers[0].name
    assert torch.equal(
        backbone.capture(pixels.numpy().astype("float64"), name)[name], backbone.capture(pixels, [name])[name]
    )


def test_wrappers_are_taken_off_and_models_compiled_in_place_refused():
    for name in ("own_tokens", "vit", "swin", "convnext"):
        model, preprocessing = model_of(name), backbone_of(name).preprocessing
        assert Backbone(nn.DataParallel(model), preprocessing).module is model
        assert Backbone(torch.compile(nn.DataParallel(torch.compile(model))), preprocessing).module is model
    model, preprocessing = model_of("own_tokens"), backbone_of("own_tokens").preprocessing
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
