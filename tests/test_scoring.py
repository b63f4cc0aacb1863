from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

import dna_probe
from dna_probe.attribution import Attributions
from dna_probe.backbones import open_backbone
from dna_probe.collection import Features, Options, collect_features
from dna_probe.errors import DnaProbeError, SiteError
from dna_probe.gradients import (
    GRADIENT_FIELDS,
    GradientRequest,
    Gradients,
    LinearHead,
    collect_gradients,
    collect_many_gradients,
    site_gradients,
)
from dna_probe.images.layouts import read_images
from dna_probe.images.sets import ImageSet, join
from dna_probe.images.sources import EncodedImage
from dna_probe.location import layer_reading
from dna_probe.scorers import SCORERS, Evidence, moderate, variance_prior
from dna_probe.scoring import (
    KINDS,
    collect_evidence,
    head_readings,
    readings_of,
    reference_head,
    score_features,
)
from dna_probe.sites import Reading

from .backbones.zoo import backbone_of
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


def recall(scores) -> float:
    planted = {reading.unit(k) for reading in scores.readings for k in PLANTED}
    best = {scores.units[i] for i in scores.order[: len(planted)]}
    return len(best & planted) / len(planted)


@pytest.mark.parametrize(
    "scorer",
    [
        "triadic",
        "triadic_loss",
        "triadic_own",
        "triadic_depths",
        "cohens_d",
        "auroc",
        "moderated_t",
        "invariance",
        "triadic_invariant",
        "real_whitened",
        "whitened",
        "weight",
        "gradient_x_activation",
    ],
)
def test_planted_units_are_found(scorer, planted, data, layer):
    scores = dna_probe.score_units(planted, data, [layer], scorer=scorer)
    assert recall(scores) >= 0.8


def test_the_knee_keeps_the_planted_units_and_little_else(planted, data, layer):
    units = dna_probe.truncate(dna_probe.score_units(planted, data, [layer], scorer="triadic"))
    kept = set(units.get_support(indices=True))
    assert set(PLANTED) <= kept and len(kept) <= 12


def test_blind_scorers_do_not_find_them(planted, data, layer):
    for scorer in ("random", "real_variance"):
        assert recall(dna_probe.score_units(planted, data, [layer], scorer=scorer)) <= 0.5


def test_shuffled_labels_leave_nothing_to_find(planted, data, layer):
    pictures, labels = data
    shuffled = np.random.default_rng(1).permutation(labels)
    scores = dna_probe.score_units(planted, (pictures, shuffled), [layer])
    assert len(dna_probe.truncate(scores, "fdr", alpha=0.01)) == 0


def test_score_is_the_product_of_its_factors(planted, data, layer):
    scores = dna_probe.score_units(planted, data, [layer], scorer="triadic")
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


def test_kinds_name_a_place_in_the_layer_and_a_reduction():
    names = {
        "cls": "hook_resid_post",
        "mean": "hook_resid_post:mean",
        "top": "hook_resid_post:top",
        "mlp": "mlp.hook_post",
        "mlp_std": "mlp.hook_post:std",
        "heads": "attn.hook_z",
        "heads_mean": "attn.hook_z:mean",
    }
    backbone = backbone_of("vit")
    layer = "blocks.1.hook_resid_post"
    assert {kind: readings_of(backbone, [layer], [kind])[0].name for kind in names} == {
        kind: f"blocks.1.{name}" for kind, name in names.items()
    }
    assert len(readings_of(backbone, [layer], list(KINDS))) == len(KINDS)


def test_a_kind_that_a_layer_does_not_have_falls_back(planted):
    """No CLS token: the patch mean; no heads or MLP: the block's output; one vector per image: that vector."""
    layer = planted.layers[1].name
    assert [r.name for r in readings_of(planted, [layer], ["heads", "heads_mean"])] == [layer, f"{layer}:mean"]
    cnn = backbone_of("resnet18")
    stage = cnn.layers[1].name
    assert [r.name for r in readings_of(cnn, [stage], ["cls", "mlp", "heads", "mlp_max"])] == [stage, f"{stage}:max"]
    pooled = backbone_of("registers_pooled")
    mlp = pooled.mlp(0)
    assert [r.name for r in readings_of(pooled, [pooled.layers[0].name], ["mlp"])] == [mlp.name]


@pytest.mark.parametrize("deepest", range(6))
def test_heads_at_several_depths_are_never_below_a_unit(planted, deepest):
    readings = readings_of(planted, [planted.layers[k].name for k in range(deepest + 1)], ["mean"])
    depths = [reading.site.layer for reading in head_readings(planted, readings, "triadic_depths")]
    assert depths == sorted({deepest, (deepest + 6) // 2, 5})
    assert [r.site.layer for r in head_readings(planted, readings, "triadic")] == [5]
    assert head_readings(planted, readings, "cohens_d") == head_readings(planted, readings, "forged_pairs") == []


def test_heads_at_several_depths_weigh_alike(planted, data):
    """The average of slow single-head passes, each scaled to unit norm per standard deviation over all units."""
    pictures = read_images(data)
    readings = readings_of(planted, [planted.layers[k].name for k in (1, 2)], ["cls", "mlp_mean"])
    at = head_readings(planted, readings, "triadic_depths")
    seen = collect_features(planted, pictures, at)
    heads = [reference_head(seen, reading) for reading in at]
    features, averaged = collect_evidence(planted, pictures, readings, heads, "triadic_depths")
    scale = features.of(readings).std(0, dtype=np.float64)
    expected = np.zeros(len(scale))
    for head in heads:
        _, gradients = collect_gradients(planted, pictures, readings, head)
        gradient = np.concatenate([gradients.mean[r.name].mean(0) for r in readings])
        expected += gradient / np.linalg.norm(gradient * scale) / len(heads)
    found = np.concatenate([averaged.mean[r.name].mean(0) for r in readings])
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_gradients_and_attributions_are_not_taken_for_each_other(rng):
    reading = layer_reading(open_backbone(Planted()).layers[0])
    values, labels = rng.normal(size=(8, reading.width)), np.repeat([0, 1], 4)
    by_name = {reading.name: np.ones((2, reading.width))}
    gradients, attributions = Gradients(*[by_name] * 4), Attributions("conductance", by_name)
    with pytest.raises(DnaProbeError, match="This scorer needs gradients"):
        SCORERS["triadic"].factors(Evidence((reading,), values, labels, attributions))
    with pytest.raises(DnaProbeError, match="This scorer needs attributions by conductance"):
        SCORERS["conductance"].factors(Evidence((reading,), values, labels, gradients))
    with pytest.raises(DnaProbeError, match="This scorer needs forged pairs"):
        SCORERS["forged_pairs"].factors(Evidence((reading,), values, labels, gradients))
    with pytest.raises(DnaProbeError, match="This scorer needs attributions by integrated_gradients"):
        SCORERS["integrated_gradients"].factors(Evidence((reading,), values, labels, attributions))


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_runs_and_is_finite(scorer, planted):
    readings = readings_of(planted, [planted.layers[3].name], ["cls", "mean", "mlp_top"])
    pictures = read_images(images(8))
    at = head_readings(planted, readings, scorer)
    seen = collect_features(planted, pictures, at) if at else None
    heads = [reference_head(seen, reading) for reading in at]
    features, sensitivity = collect_evidence(planted, pictures, readings, heads, scorer)
    scores = score_features(features, readings, scorer, sensitivity)
    assert np.isfinite(scores.score).all() and (scores.score >= 0).all() and len(scores.units) == len(scores.score)
    assert scores.score.any()


def made_up_readings(count: int = 2) -> tuple[Reading, ...]:
    backbone = open_backbone(Planted())
    return tuple(layer_reading(backbone.layers[k]) for k in range(count))


def replace_width(reading: Reading, width: int) -> Reading:
    return Reading(replace(reading.site, width=width), reading.reduction)


def score_of(scorer: str, evidence: Evidence) -> np.ndarray:
    return np.abs(np.prod(list(SCORERS[scorer].factors(evidence).values()), axis=0))


def with_views(rng, count=20, views=4, moved=()):
    """Evidence of two readings in which the first five units differ, with views that move the units ``moved``."""
    readings = made_up_readings()
    width = sum(reading.width for reading in readings)
    labels = np.repeat([0, 1], count)
    own = rng.normal(size=(2 * count, width))
    own[:, :5] += 1.5 * labels[:, None]
    shift = np.zeros((views, 1, width))
    shift[:, :, list(moved)] = 3 * rng.normal(size=(views, 1, len(moved)))
    values = (own + shift).reshape(-1, width)
    return Evidence(readings, values, np.tile(labels, views), image=np.tile(np.arange(2 * count), views))


FEATURE_SCORERS = [name for name, scorer in SCORERS.items() if scorer.needs == "features"]


class TestModeratedT:
    def test_the_prior_of_planted_variances_is_found(self, rng):
        """Variances from a scaled inverse chi-squared distribution, estimated with few degrees of freedom."""
        true = 8 * 0.5 / rng.chisquare(8, 50_000)
        freedom, variance = variance_prior(true * rng.chisquare(6, 50_000) / 6, 6)
        assert freedom == pytest.approx(8, rel=0.05) and variance == pytest.approx(0.5, rel=0.02)

    def test_variances_that_differ_by_chance_alone_are_pooled(self, rng):
        equal = 2.0 * rng.chisquare(200, 400) / 200
        assert variance_prior(np.full(50, 3.0), 10)[0] == np.inf
        assert np.ptp(moderate(np.full(50, 3.0), 10)) == 0
        assert moderate(equal, 200) == pytest.approx(np.full(400, 2.0), rel=0.02)

    def test_variances_that_share_nothing_are_left_alone(self, rng):
        """A prior with no degrees of freedom leaves the ordinary t; a unit by itself has none to share."""
        assert variance_prior(np.exp(rng.normal(0, 12, 5000)), 30)[0] < 0.5
        alone = rng.normal(size=(12, 1))
        reading = replace_width(made_up_readings(1)[0], 1)
        labels = np.repeat([0, 1], 6)
        expected = ttest_ind(alone[6:], alone[:6]).statistic
        found = SCORERS["moderated_t"].factors(Evidence((reading,), alone, labels))["t"]
        assert np.allclose(found, expected)

    def test_it_beats_the_plain_t_where_variances_are_alike(self, rng):
        reading = replace_width(made_up_readings(1)[0], 5000)
        labels = np.repeat([0, 1], 3)
        values = rng.normal(size=(6, 5000))
        values[:, :50] += 4 * labels[:, None]
        plain = np.abs(ttest_ind(values[3:], values[:3]).statistic)
        found = score_of("moderated_t", Evidence((reading,), values, labels))
        hits = [(np.argsort(-score)[:50] < 50).mean() for score in (plain, found)]
        assert hits[1] > hits[0] + 0.15

    def test_null_labels_give_no_large_value(self, rng):
        reading = replace_width(made_up_readings(1)[0], 2000)
        values = rng.normal(size=(20, 2000)) * np.exp(rng.normal(0, 0.3, 2000))
        assert score_of("moderated_t", Evidence((reading,), values, np.repeat([0, 1], 10))).max() < 5.5

    def test_readings_have_priors_of_their_own(self, rng):
        """Units of another reading, however wild, do not change a reading's scores."""
        first, second = made_up_readings()
        values, labels = rng.normal(size=(12, first.width + second.width)), np.repeat([0, 1], 6)
        alone = score_of("moderated_t", Evidence((first,), values[:, : first.width], labels))
        values[:, first.width :] *= 1e4
        assert np.allclose(score_of("moderated_t", Evidence((first, second), values, labels))[: first.width], alone)


class TestViews:
    def test_views_count_as_one_image(self, rng):
        evidence = with_views(rng)
        means = evidence.over_images
        assert means.values.shape == (40, evidence.values.shape[1]) and means.image is None
        assert np.allclose(means.values, evidence.values[:40])
        shuffled = rng.permutation(len(evidence.labels))
        other = Evidence(
            evidence.readings, evidence.values[shuffled], evidence.labels[shuffled], image=evidence.image[shuffled]
        )
        assert np.allclose(other.over_images.values, means.values)
        for scorer in ("moderated_t", "invariance"):
            assert np.allclose(score_of(scorer, other), score_of(scorer, evidence))

    def test_a_unit_that_processing_moves_scores_less(self, rng):
        found = score_of("invariance", with_views(rng, moved=(0, 1)))
        assert found[:2].max() < 0.7 * found[2:5].min()
        assert set(np.argsort(-found)[:3]) == {2, 3, 4}

    def test_without_views_invariance_is_cohens_d(self, rng):
        evidence = with_views(rng, views=1)
        assert np.allclose(score_of("invariance", evidence), np.abs(evidence.contrast))

    def test_the_share_between_views_is_that_of_the_sums_of_squares(self, rng):
        """Slow reference, image by image."""
        evidence = with_views(rng, count=5, moved=(0, 7))
        within = np.zeros(evidence.values.shape[1])
        for image in range(10):
            own = evidence.values[evidence.image == image]
            within += ((own - own.mean(0)) ** 2).sum(0)
        total = ((evidence.values - evidence.values.mean(0)) ** 2).sum(0)
        assert np.allclose(evidence.invariance, 1 - within / total)

    def test_resampling_draws_images_with_all_their_views(self, rng):
        evidence = with_views(rng)
        drawn = evidence.resampled(rng)
        _, views = np.unique(drawn.image, return_counts=True)
        assert views.tolist() == [4] * 32 and (drawn.labels == 1).sum() == 64
        assert (np.unique(drawn.image[drawn.labels == 0]) < 20).all()

    def test_views_are_known_by_the_name_of_their_image(self, planted):
        pictures = read_images(images(6))
        readings = readings_of(planted, [planted.layers[3].name], ["cls"])
        features = collect_features(planted, pictures, readings)
        named = ImageSet(tuple(EncodedImage(f"{i}", b"") for i in range(12)), pictures.labels, groups=pictures.groups)
        twice = Features(join([named, named]), {n: np.tile(v, (2, 1)) for n, v in features.values.items()}, {})
        once = score_features(features, readings, "moderated_t")
        again = score_features(twice, readings, "moderated_t")
        assert np.allclose(once.score, again.score) and np.allclose(once.p_value, again.p_value)
        assert np.allclose(once.resamples, again.resamples)


class TestBalance:
    @pytest.mark.parametrize("scorer", ["cohens_d", "auroc", "activation", "invariance", "real_whitened"])
    def test_how_many_images_a_class_has_does_not_matter(self, scorer, rng):
        """Every real image four times over."""
        even = with_views(rng, views=1)
        rows = np.concatenate([np.arange(40), *[np.arange(20)] * 3])
        more = Evidence(even.readings, even.values[rows], even.labels[rows])
        assert np.allclose(score_of(scorer, even), score_of(scorer, more))

    @pytest.mark.parametrize("scorer", FEATURE_SCORERS)
    def test_one_image_of_each_class_does_not_fail(self, scorer, rng):
        for views in (1, 3):
            found = score_of(scorer, with_views(rng, count=1, views=views, moved=(3,)))
            assert np.isfinite(found).all()
            assert found.any() or scorer == "real_variance"

    @pytest.mark.parametrize("scorer", ["cohens_d", "auroc", "invariance", "real_whitened", "weight", "whitened"])
    def test_neither_scale_nor_order_matter(self, scorer, rng):
        evidence = with_views(rng, moved=(1,))
        expected = score_of(scorer, evidence)
        order, scale = rng.permutation(len(evidence.labels)), rng.uniform(0.01, 100, evidence.values.shape[1])
        other = Evidence(
            evidence.readings,
            (evidence.values * scale + 5 * scale)[order],
            evidence.labels[order],
            image=evidence.image[order],
        )
        assert np.allclose(score_of(scorer, other), expected, rtol=1e-3, atol=1e-3 * expected.max())


class TestRealWhitened:
    def test_it_is_a_ridge_discriminant_of_the_reals(self, rng):
        evidence = with_views(rng, views=1)
        start, expected = 0, []
        for reading in evidence.readings:
            block = evidence.values[:, start : start + reading.width]
            block = (block - block.mean(0)) / block.std(0)
            real, fake = block[evidence.labels == 0], block[evidence.labels == 1]
            covariance = np.cov(real.T, bias=True)
            expected.append(np.linalg.solve(covariance + np.eye(reading.width), fake.mean(0) - real.mean(0)))
            start += reading.width
        assert np.allclose(score_of("real_whitened", evidence), np.abs(np.concatenate(expected)))

    def test_what_real_images_differ_in_is_damped(self, rng):
        """Twenty units follow the content, by which the fakes differ too; one unit differs by itself, by less."""
        (reading,) = made_up_readings(1)
        labels = np.repeat([0, 1], [60, 20])
        content = rng.normal(size=80) * 2 + 1.6 * labels
        values = rng.normal(size=(80, reading.width))
        values[:, :20] += 2 * content[:, None]
        values[:, 30] += 1.0 * labels
        evidence = Evidence((reading,), values, labels)
        assert np.argmax(score_of("real_whitened", evidence)) == 30
        constant = values.copy()
        constant[:, 4] = 7.0
        found = score_of("real_whitened", Evidence((reading,), constant, labels))
        assert np.isfinite(found).all() and found[4] < 1e-12
