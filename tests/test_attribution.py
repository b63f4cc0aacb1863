"""Attributions on the way from a blank image, against slow loops and what they must add up to."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import dna_probe
from dna_probe.attribution import ATTRIBUTION_METHODS, collect_attributions
from dna_probe.backbones import open_backbone
from dna_probe.batches import load_batches
from dna_probe.collection import Options
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.evaluation.harness import benchmark
from dna_probe.evaluation.preparation import Settings
from dna_probe.evaluation.protocols import Plan
from dna_probe.fitting import DnaSettings
from dna_probe.gradients import LinearHead
from dna_probe.images.layouts import read_images
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading
from dna_probe.sites import Reading

from .planted import PLANTED, TURN, Planted, images

ATTRIBUTING = ("conductance", "triadic_conductance", "integrated_gradients", "internal_influence")


@pytest.fixture(scope="module")
def planted():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def head(planted):
    """On the last block; its weights are drawn, its site is deeper than all that is attributed."""
    last, rng = layer_reading(planted.layers[-1]), np.random.default_rng(0)
    return LinearHead(last, np.zeros(last.width), np.ones(last.width), rng.normal(size=last.width), 0.3)


@pytest.fixture(scope="module")
def few():
    return read_images(images(3))


def pixels_of(backbone, pictures) -> torch.Tensor:
    (batch,) = load_batches(pictures.images, backbone.preprocessing, len(pictures), 0)
    return torch.from_numpy(batch.inputs)


def logit_at(backbone, head, pixels) -> torch.Tensor:
    name = head.reading.site.name
    return head.logits(backbone.capture(pixels, [name])[name])


def slow(backbone, head, site, image, method, steps) -> torch.Tensor:
    """One image, one step at a time, on quadrature points by NumPy: attributions of the site's activation."""
    nodes = steps + 1 if method == "conductance" else steps
    points, weights = np.polynomial.legendre.leggauss(nodes)
    points, weights = (points + 1) / 2, weights / 2

    def gradient(pixels, activation=None):
        kept = {}

        def visit(found):
            kept["site"] = (found if activation is None else activation).detach().clone().requires_grad_(True)
            return kept["site"].clone()

        end = head.reading.site.name
        with torch.enable_grad(), backbone.visiting({site.name: visit, end: lambda a: kept.update(end=a)}) as run:
            run(pixels[None])
            (slope,) = torch.autograd.grad(head.logits(kept["end"]).sum(), kept["site"])
        return kept["site"].detach()[0], slope[0]

    if method == "integrated_gradients":
        start, end = gradient(0 * image)[0], gradient(image)[0]
        slopes = [gradient(image, (start + p * (end - start))[None])[1] for p in points]
        return (end - start) * sum(w * slope for w, slope in zip(weights, slopes, strict=True))
    path = [gradient(p * image) for p in points]
    if method == "internal_influence":
        return sum(w * slope for w, (_, slope) in zip(weights, path, strict=True))
    return sum(slope * (after - value) for (value, slope), (after, _) in pairwise(path))


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_attributions_equal_a_slow_loop(planted, head, few, method, batch_size):
    """Every kind of site and reduction, however the steps fall into passes; influence is reduced as a gradient."""
    sites = [planted.layers[2], planted.mlp(3)]
    readings = [Reading(site, reduction) for site in sites for reduction in ("cls", "mean", "max", "std")]
    found = collect_attributions(planted, few, readings, head, method, 4, Options(batch_size=batch_size))
    assert found.method == method
    pixels = pixels_of(planted, few)
    for site in sites:
        activations = planted.capture(pixels, [site.name])[site.name]
        attributions = torch.stack([slow(planted, head, site, image.float(), method, 4) for image in pixels])
        for reading in (r for r in readings if r.site == site):
            reduce = reading.reduce_gradient if method == "internal_influence" else reading.reduce_attribution
            values = reduce(attributions, activations).numpy()
            expected = np.stack([values[few.labels == label].mean(0) for label in (0, 1)])
            assert np.abs(expected).max() > 0
            np.testing.assert_allclose(found.mean[reading.name], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("method", "tolerance"), [("conductance", 0.02), ("integrated_gradients", 1e-3)])
def test_attributions_over_all_tokens_add_up_to_the_logit(planted, head, few, method, tolerance):
    """A cut through the network: the class token and all patches of one block's output."""
    site = planted.layers[1]
    readings = [Reading(site, "cls"), Reading(site, "mean")]
    pixels = pixels_of(planted, few)
    gained = (logit_at(planted, head, pixels) - logit_at(planted, head, 0 * pixels)).numpy()
    found = collect_attributions(planted, few, readings, head, method, 200, Options(batch_size=64))
    total = sum(found.mean[reading.name].sum(1) for reading in readings)
    expected = np.array([gained[few.labels == label].mean() for label in (0, 1)])
    np.testing.assert_allclose(total, expected, atol=tolerance * np.abs(gained).max())


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_the_heads_own_site_can_be_attributed_and_the_model_stays_as_it_was(planted, head, few, method):
    module, last = planted.module, head.reading
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]
    found = collect_attributions(planted, few, [last], head, method, 3).mean[last.name]
    if method == "internal_influence":
        np.testing.assert_allclose(found, np.stack([head.weight] * 2), rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert flags == ([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()])
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_attributions_are_not_computed_twice_with_a_cache(planted, head, few, tmp_path, monkeypatch):
    options, readings = Options(cache=tmp_path), [layer_reading(planted.layers[2])]
    first = collect_attributions(planted, few, readings, head, steps=3, options=options)
    other = collect_attributions(planted, few, readings, head, steps=5, options=options)
    monkeypatch.setattr("dna_probe.attribution.stream_batches", lambda *_: pytest.fail("computed again"))
    again = collect_attributions(planted, few, readings, head, steps=3, options=options)
    name = readings[0].name
    assert np.array_equal(again.mean[name], first.mean[name])
    assert not np.array_equal(other.mean[name], first.mean[name])


def test_mistakes_are_named(planted, head, few):
    readings = [layer_reading(planted.layers[2])]
    with pytest.raises(DnaProbeError, match=r"Unknown attribution method 'conductnce'. Did you mean 'conductance'"):
        collect_attributions(planted, few, readings, head, "conductnce")
    with pytest.raises(DnaProbeError, match=r"0 steps cannot be taken. Take at least 1"):
        collect_attributions(planted, few, readings, head, steps=0)
    broken = ImageSet((b"no image",) * 2, np.array([0, 1]), ("real", "made"), ("a", "b"))
    with pytest.raises(DataError, match=r"None of the 2 images of .* could be read"):
        collect_attributions(planted, broken, readings, head)


@pytest.mark.parametrize("scorer", ATTRIBUTING)
def test_planted_units_are_found(planted, scorer):
    layer = planted.layers[TURN + 1].name
    scores = dna_probe.score_units(planted, images(40), [layer], scorer=scorer, kinds=("cls",))
    best = {scores.units[i] for i in scores.order[: len(PLANTED)]}
    assert len(best & {f"{layer}[{k}]" for k in PLANTED}) >= 0.8 * len(PLANTED)


@pytest.mark.parametrize("scorer", ["triadic_depths", "triadic_conductance", "internal_influence"])
def test_detectors_are_fitted_with_them(planted, scorer):
    detector = dna_probe.fit(planted, images(12), scorer=scorer, kinds=["cls", "max"], cut="top_k", k=8)
    pictures, labels = images(8, seed=5)
    assert (detector.predict(pictures) == labels).mean() > 0.8


@pytest.mark.parametrize("scorer", ["triadic_depths", "conductance"])
def test_benchmarks_run_with_them(planted, scorer, tmp_path):
    pictures, labels = images(8)
    made = tuple("made" if label else "real" for label in labels)
    data = ImageSet(tuple(pictures), labels, made, tuple(str(i) for i in range(16)), origin="planted")
    settings = Settings(
        methods=("dna", "last-linear"), plan=Plan(shots=(3,), draws=1), dna=DnaSettings(scorer=scorer, rule="all")
    )
    rows = benchmark(planted, data, settings=settings, state=tmp_path).result.summary
    assert {row["method"] for row in rows} == {"dna", "last-linear"}
    assert all(row["metrics"]["auc"]["value"] > 0.6 for row in rows if row["method"] == "dna")
