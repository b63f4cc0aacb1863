import numpy as np
import pytest
import torch

import dna_probe
from dna_probe.backbones import open_backbone
from dna_probe.collection import (
    GRADIENT_FIELDS,
    Features,
    GradientRequest,
    LinearHead,
    Options,
    collect_features,
    collect_gradients,
    collect_many_gradients,
    site_gradients,
)
from dna_probe.errors import DnaProbeError, SiteError
from dna_probe.images.layouts import read_images
from dna_probe.location import layer_reading
from dna_probe.scoring import SCORERS, Evidence, readings_of, reference_head, score_features
from dna_probe.sites import Reading

from .planted import PLANTED, TURN, Planted, images


@pytest.fixture(scope="module")
def planted():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def data():
    return images(60)


@pytest.fixture(scope="module")
def layer(planted):
    return planted.layers[TURN + 1].name


def recall(scores, layer) -> float:
    planted = {f"{layer}[{k}]" for k in PLANTED}
    best = {scores.units[i] for i in scores.order[: len(planted)]}
    return len(best & planted) / len(planted)


@pytest.mark.parametrize(
    "scorer", ["triadic", "triadic_loss", "triadic_own", "cohens_d", "auroc", "weight", "gradient_x_activation"]
)
def test_planted_units_are_found(scorer, planted, data, layer):
    scores = dna_probe.score_units(planted, data, [layer], scorer=scorer)
    assert recall(scores, layer) >= 0.8


def test_the_knee_keeps_the_planted_units_and_little_else(planted, data, layer):
    units = dna_probe.truncate(dna_probe.score_units(planted, data, [layer]))
    kept = set(units.get_support(indices=True))
    assert set(PLANTED) <= kept and len(kept) <= 12


def test_blind_scorers_do_not_find_them(planted, data, layer):
    for scorer in ("random", "real_variance"):
        assert recall(dna_probe.score_units(planted, data, [layer], scorer=scorer), layer) <= 0.5


def test_shuffled_labels_leave_nothing_to_find(planted, data, layer):
    pictures, labels = data
    shuffled = np.random.default_rng(1).permutation(labels)
    scores = dna_probe.score_units(planted, (pictures, shuffled), [layer])
    assert len(dna_probe.truncate(scores, "fdr", alpha=0.01)) == 0


def test_score_is_the_product_of_its_factors(planted, data, layer):
    scores = dna_probe.score_units(planted, data, [layer])
    assert set(scores.factors) == {"gradient", "activation", "weight"}
    assert np.allclose(scores.score, np.abs(np.prod(list(scores.factors.values()), axis=0)))
    assert list(scores.table().columns[3:6]) == ["gradient", "activation", "weight"]


def test_scores_come_back_from_json(planted, data, layer):
    scores = dna_probe.score_units(planted, data, [layer])
    again = dna_probe.UnitScores.from_json(scores.to_json())
    assert again.units == scores.units and np.array_equal(again.score, scores.score)


def test_unit_scale_does_not_matter(rng):
    """The default triad is in standard deviations: units measured in other numbers rank the same."""
    site = open_backbone(Planted()).layers[0]
    reading = Reading(site, "cls")
    values, labels = rng.normal(size=(40, reading.width)), np.repeat([0, 1], 20)
    values[:, :5] += labels[:, None]
    gradient = np.stack([rng.normal(size=reading.width)] * 2)
    scale = rng.uniform(0.01, 100, reading.width)
    from dna_probe.collection import Gradients

    def score(v, g):
        fields = {f: {reading.name: g} for f in ("mean", "absolute", "product", "loss")}
        factors = SCORERS["triadic"].factors(Evidence((reading,), v, labels, Gradients(**fields)))
        return np.abs(np.prod(list(factors.values()), axis=0))

    assert np.allclose(score(values, gradient), score(values * scale, gradient / scale), rtol=1e-6)


def test_one_pass_gradients_equal_one_sample_autograd(planted, data):
    """Slow reference: one image, one site, one backward at a time."""
    sites = [planted.layers[1], planted.layers[3]]
    last = layer_reading(planted.layers[-1])
    weight = np.random.default_rng(0).normal(size=last.width)
    head = LinearHead(last, np.zeros(last.width), np.ones(last.width), weight, 0.3)
    pixels = torch.randn(4, 3, 32, 32)
    with site_gradients(planted, sites, [head]) as differentiate:
        logits, pairs = next(differentiate(pixels, [0]))
    for site in sites:
        for i in range(4):
            kept = []

            def hook(module, args, output, kept=kept):
                kept.append(output.detach().requires_grad_(True))
                return kept[0]

            handle = planted.module.get_submodule(site.module).register_forward_hook(hook)
            logit = planted.module(pixels[i : i + 1])[0, 0] @ torch.as_tensor(weight, dtype=torch.float32) + 0.3
            handle.remove()
            (slow,) = torch.autograd.grad(logit, kept[0])
            assert torch.allclose(pairs[site.name][1][i], slow[0], atol=1e-6)
            assert torch.allclose(logits[i], logit, atol=1e-5)


def test_many_heads_in_one_pass_equal_one_after_the_other(planted, data, tmp_path):
    """Requests that overlap, over readings of their own, with and without a cache."""
    data = read_images(data)
    last = layer_reading(planted.layers[-1])
    rng = np.random.default_rng(0)
    requests = [
        GradientRequest(
            np.sort(rng.choice(len(data), size, replace=False)),
            [layer_reading(planted.layers[layer]) for layer in layers],
            LinearHead(last, np.zeros(last.width), np.ones(last.width), rng.normal(size=last.width), 0.1),
        )
        for size, layers in ((10, (1, 3)), (20, (3, 4)), (5, (3, 4)))
    ]
    for options in (Options(), Options(cache=tmp_path), Options(cache=tmp_path)):
        found = collect_many_gradients(planted, data, requests, options)
        for request, many in zip(requests, found, strict=True):
            _, one = collect_gradients(planted, data.subset(request.members), request.readings, request.head)
            for field in GRADIENT_FIELDS:
                for name, values in getattr(one, field).items():
                    np.testing.assert_allclose(getattr(many, field)[name], values, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_one_pass_equals_captum_layer_by_layer(name):
    from captum.attr import LayerGradientXActivation

    backbone = open_backbone(name, random_weights=True)
    module, sites = backbone.module, [backbone.layers[i] for i in (1, 2, -1)]
    last = layer_reading(backbone.layers[-1])
    weight = np.random.default_rng(0).normal(size=last.width)
    head = LinearHead(last, np.zeros(last.width), np.ones(last.width), weight, 0.0)
    pixels = torch.randn(2, 3, 224, 224)
    with site_gradients(backbone, sites, [head]) as differentiate:
        _, pairs = next(differentiate(pixels, [0]))

    def forward(x):
        with backbone.visiting({last.site.name: lambda a: kept.append(a)}) as run:
            kept = []
            run(x)
        return head.logits(kept[0])

    for site in sites:
        theirs = LayerGradientXActivation(forward, module.get_submodule(site.module)).attribute(pixels)
        activation, gradient = pairs[site.name]
        assert torch.allclose(activation * gradient, theirs, atol=1e-5 * float(theirs.detach().abs().max()))


def test_gradients_leave_the_model_as_it_was(planted, data, layer):
    module = planted.module
    before = {k: v.clone() for k, v in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]
    dna_probe.score_units(planted, data, [layer])
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert flags == ([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()])
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_features_and_gradients_come_from_the_same_pass(planted, data, layer):
    pictures = dna_probe.read_images(data)
    readings = readings_of(planted, [layer], ["cls", "mean"])
    last = layer_reading(planted.layers[-1])
    head = reference_head(collect_features(planted, pictures, [last]), last)
    features, gradients = collect_gradients(planted, pictures, readings, head)
    plain = collect_features(planted, pictures, readings)
    assert all(np.allclose(features.values[r.name], plain.values[r.name], atol=1e-6) for r in readings)
    assert all(gradients.mean[r.name].shape == (2, r.width) for r in readings)
    assert all((gradients.absolute[r.name] >= np.abs(gradients.mean[r.name]) - 1e-9).all() for r in readings)


def test_own_probe_gradient_adds_nothing(rng):
    """METHOD: within a layer |gradient x activation x weight| of the own probe ranks as activation x weight^2."""
    reading = layer_reading(open_backbone(Planted()).layers[0])
    values, labels = rng.normal(size=(40, reading.width)), np.repeat([0, 1], 20)
    evidence = Evidence((reading,), values, labels)
    factors = SCORERS["triadic_own"].factors(evidence)
    score = np.abs(np.prod(list(factors.values()), axis=0))
    assert np.array_equal(np.argsort(score), np.argsort(np.abs(evidence.contrast) * evidence.weight**2))


@pytest.mark.parametrize(
    ("arguments", "message", "error"),
    [
        ({"scorer": "triadc"}, "Unknown scorer 'triadc'. Did you mean 'triadic'", DnaProbeError),
        ({"kinds": ["clss"]}, "Unknown unit kind 'clss'. Did you mean 'cls'", DnaProbeError),
        ({"layers": ["blocks.3.hook_resid_pots"]}, "Unknown site 'blocks.3.hook_resid_pots'. Did you mean", SiteError),
        ({"layers": []}, "No layer was taken", DnaProbeError),
    ],
)
def test_mistyped_names_are_answered_with_near_matches(arguments, message, error, planted, data):
    with pytest.raises(error) as caught:
        dna_probe.score_units(planted, data, **({"layers": [planted.layers[0].name]} | arguments))
    assert message in str(caught.value)


def test_every_scorer_runs_and_is_finite(planted, data, layer):
    pictures = dna_probe.read_images(data)
    readings = readings_of(planted, [layer], ["cls", "mean"])
    last = layer_reading(planted.layers[-1])
    head = reference_head(collect_features(planted, pictures, [last]), last)
    features, gradients = collect_gradients(planted, pictures, readings, head)
    assert isinstance(features, Features)
    for scorer in SCORERS:
        scores = score_features(features, readings, scorer, gradients)
        assert np.isfinite(scores.score).all() and (scores.score >= 0).all() and len(scores.units) == len(scores.score)
