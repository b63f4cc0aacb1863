import json

import numpy as np
import pytest
import torch

import dna_probe
from dna_probe.attention import summarise_energy, summarise_pattern
from dna_probe.backbones import open_backbone
from dna_probe.collection import attention_summary
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.layer_rules import RULES, choose_layers
from dna_probe.location import _bootstrap_weights, collect_layer_features, report_layers
from dna_probe.probing import folds, out_of_fold_scores
from dna_probe.sites import Site

from .backbones.zoo import ConvModel, backbone_of, pixels_for
from .planted import TURN, Planted, images


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def report(backbone):
    return dna_probe.locate_layers(backbone, images(40), resamples=50)


def curves(spread, shift):
    spread, shift = np.asarray(spread, float), np.asarray(shift, float)
    return {"spread": spread, "cosine_shift": shift, "normalised_shift": shift, "attention_js": shift}


class TestCurves:
    def test_decoupling_appears_where_the_class_token_looks(self, report):
        auc = report.curves["probe_auc"].value
        assert (auc[TURN:] > 0.95).all() and (np.abs(auc[:TURN] - 0.5) < 0.2).all()
        shift = report.curves["cosine_shift"].value
        assert shift[TURN:].min() > 10 * shift[:TURN].max()

    def test_intervals_hold_the_value_and_nulls_lie_below_a_real_shift(self, report):
        for name, curve in report.curves.items():
            assert (curve.low <= curve.high + 1e-12).all(), name
        shift = report.curves["normalised_shift"]
        assert (shift.value[TURN:] > shift.null[TURN:]).all()

    def test_shuffled_labels_stay_near_the_null(self, backbone):
        pictures, labels = images(40)
        shuffled = np.random.default_rng(3).permutation(labels)
        report = dna_probe.locate_layers(backbone, (pictures, shuffled), resamples=100)
        for name in ("cosine_shift", "normalised_shift", "fisher"):
            curve = report.curves[name]
            assert (curve.value < 2 * curve.null + 1e-12).all(), name

    def test_formulas_against_a_plain_loop(self, backbone):
        """Slow reference on the full matrices."""
        data = dna_probe.read_images(images(10))
        features = collect_layer_features(backbone, data)
        report = report_layers(backbone, features, resamples=5)
        labels = data.labels
        for i, site in enumerate(backbone.layers):
            x = features.values[site.name].astype(np.float64)
            real, fake = x[labels == 0], x[labels == 1]
            a, b = real.mean(0), fake.mean(0)
            variance = (real.var(0) + fake.var(0)) / 2
            cosine = 1 - a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)
            constant = x.std(0).max() < 1e-6  # before the class token looks
            shift = 0.0 if constant else np.sqrt(((a - b) ** 2).sum()) / np.sqrt(x.shape[1] * variance.mean())
            assert np.isclose(report.curves["cosine_shift"].value[i], cosine, atol=1e-9)
            assert np.isclose(report.curves["normalised_shift"].value[i], shift, rtol=1e-6)
            m = features.attention[site.name]["map"].astype(np.float64)
            p, q = m[labels == 0].mean(0), m[labels == 1].mean(0)
            middle = (p + q) / 2
            js = sum(v * np.log(v / w) for u in (p, q) for v, w in zip(u, middle, strict=True)) / 2
            assert np.isclose(report.curves["attention_js"].value[i], js, atol=1e-9)

    def test_report_survives_json(self, report):
        again = dna_probe.LayerReport.from_json(json.loads(json.dumps(report.to_json())))
        assert again.selected == report.selected and again.reasons == report.reasons
        assert np.allclose(again.curves["fisher"].value, report.curves["fisher"].value)
        assert np.allclose(again.maps["fake"][2], report.maps["fake"][2], atol=1e-7)
        assert len(report.table()) == len(report.layers)
        assert "LayerReport: rule 'transition'" in repr(report)

    def test_another_rule_on_the_same_curves(self, report):
        assert report.with_rule("last").selected == [report.layers[-1]]
        assert len(report.with_rule("top_m", m=2).selected) == 2

    def test_energy_map_stands_in_where_there_is_no_attention(self, report):
        assert set(report.attention_source) == {"energy"}
        assert report.maps["real"][0].shape == (4, 4)

    def test_bootstrap_moves_groups_together(self, rng):
        labels, groups = np.array([0, 0, 1, 1, 1, 0]), ["a", "a", "a", "b", "b", "b"]
        for weights in _bootstrap_weights(labels, groups, 50, rng):
            assert np.allclose(weights.sum(1), 1)
        real, _ = _bootstrap_weights(labels, groups, 50, rng)
        assert np.allclose(real[:, 0], real[:, 1])

    def test_one_class_is_refused(self, backbone):
        pictures, _ = images(4)
        with pytest.raises(DataError, match=r"no fake images"):
            dna_probe.locate_layers(backbone, (pictures, np.zeros(8, int)))


class TestAttentionSummary:
    site = Site("blocks.0.attn.hook_pattern", "pattern", 0, "a", "input", "tokens", 2, 1, True)

    def test_one_patch_is_local_and_all_patches_are_global(self):
        pattern = torch.full((1, 2, 10, 10), 0.1)
        everywhere = summarise_pattern(pattern, self.site, (3, 3))
        pattern = torch.zeros(1, 2, 10, 10)
        pattern[..., 5] = 1
        one = summarise_pattern(pattern, self.site, (3, 3))
        assert np.isclose(float(everywhere["entropy"]), np.log(9)) and float(one["entropy"]) < 1e-5
        assert np.isclose(float(one["map"][0, 4]), 1)

    def test_mean_distance_is_in_patches(self):
        pattern = torch.eye(10).expand(1, 2, 10, 10)
        assert float(summarise_pattern(pattern, self.site, (3, 3))["distance"]) == 0
        shifted = torch.zeros(1, 2, 10, 10)
        for query in range(9):  # every patch looks at the first one
            shifted[..., query + 1, 1] = 1
        expected = np.mean([np.hypot(y, x) for y in range(3) for x in range(3)])
        assert np.isclose(float(summarise_pattern(shifted, self.site, (3, 3))["distance"]), expected)

    def test_energy_is_the_share_of_squared_activation(self):
        tokens = torch.zeros(1, 4, 3)
        tokens[0, 2] = 5
        summary = summarise_energy(tokens, (2, 2))
        assert summary["map"][0].tolist() == [0, 0, 1, 0] and float(summary["distance"]) == 0

    def test_tokens_of_layers_that_differ_in_their_grid_lie_on_one_each(self):
        hierarchical = backbone_of("hf_swin")
        assert hierarchical.grid is None
        names = [site.name for site in hierarchical.layers]
        for name, tokens in hierarchical.capture(pixels_for(hierarchical, 1), names).items():
            side = int(tokens.shape[1] ** 0.5)
            expected = summarise_energy(tokens, (side, side))
            found = attention_summary(hierarchical, hierarchical.sites[name], tokens)
            torch.testing.assert_close(found, expected)

    def test_where_patches_lie_is_told_by_the_grid_and_by_the_aspect_of_the_image(self):
        square, oblong = backbone_of("own_tokens"), open_backbone(ConvModel(), preprocessing=Preprocessing((32, 64)))
        assert [square.grid_of(patches) for patches in (16, 64, 7)] == [(4, 4), (8, 8), (1, 7)]
        assert [oblong.grid_of(patches) for patches in (32, 16)] == [(4, 8), (1, 16)]


class TestRules:
    def test_transition_takes_the_band_behind_the_turn(self):
        choice = choose_layers("transition", curves([0.9, 1, 0.98, 0.7, 0.6, 0.65], [0, 0, 0.1, 0.5, 1, 0.9]))
        assert choice.taken == (False, False, False, True, True, True)
        assert "attention local, decoupling risen" in choice.reasons[4]
        assert "attention is still global" in choice.reasons[2]

    def test_transition_needs_both(self):
        choice = choose_layers("transition", curves([1, 0.5, 0.5, 0.5], [0, 0.01, 0.05, 1]))
        assert choice.taken == (False, False, False, True)
        assert "decoupling has not risen" in choice.reasons[1]

    def test_transition_closes_a_hole_of_one_layer(self):
        choice = choose_layers("transition", curves([1, 0.5, 0.9, 0.5], [0, 1, 1, 1]))
        assert choice.taken == (False, True, True, True)
        assert choice.reasons[2] == "between two layers of the band"

    def test_transition_without_a_turn_says_so(self):
        choice = choose_layers("transition", curves([0.5, 0.6, 0.7, 0.8], [0, 0.1, 0.6, 1]))
        assert choice.taken == (False, False, True, True)
        assert all("does not turn local" in reason for reason in choice.reasons)

    def test_transition_always_takes_a_layer(self):
        choice = choose_layers("transition", curves([1, 0.9, 0.5, 0.5], [1, 0.9, 0.01, 0.02]))
        assert choice.taken == (True, True, False, False)
        assert "no layer with local attention is decoupled" in choice.reasons[0]

    def test_intersection_may_be_empty_and_union_is_not(self):
        c = curves([1, 0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0, 1])
        c["normalised_shift"] = np.array([1.0, 0, 0, 0, 0])
        assert not any(choose_layers("intersection", c).taken)
        assert choose_layers("union", c).taken == (True, False, False, False, True)

    def test_top_m_takes_m_layers_by_mean_rank(self):
        choice = choose_layers("top_m", curves([1, 1, 1, 1], [4, 1, 3, 2]), m=2)
        assert choice.taken == (True, False, True, False)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("depth", [1, 2, 4, 12])
    def test_every_rule_gives_each_layer_a_reason(self, rule, depth, rng):
        choice = choose_layers(rule, curves(rng.random(depth), rng.random(depth)))
        assert len(choice.taken) == len(choice.reasons) == depth and all(choice.reasons)

    @pytest.mark.parametrize(("rule", "taken"), [("1-2", [1, 2]), ("3", [3]), ("0-3", [0, 1, 2, 3])])
    def test_layers_by_number(self, rule, taken):
        choice = choose_layers(rule, curves([4, 3, 2, 1], [1, 2, 3, 4]))
        assert np.flatnonzero(choice.taken).tolist() == taken and f"the layers named, {rule}" in choice.reasons[0]

    @pytest.mark.parametrize("rule", ["2-1", "4", "3-9"])
    def test_layers_that_are_not_there(self, rule):
        with pytest.raises(DnaProbeError, match=rf"Layers {rule} are not there(.|\n)*layers 0 to 3"):
            choose_layers(rule, curves([4, 3, 2, 1], [1, 2, 3, 4]))

    def test_mistyped_rule_and_parameter(self):
        with pytest.raises(DnaProbeError) as caught:
            choose_layers("transiton", curves([1], [1]))
        assert "Did you mean 'transition'" in str(caught.value)
        with pytest.raises(DnaProbeError, match=r"does not take m"):
            choose_layers("all", curves([1], [1]), m=3)


class TestProbing:
    def test_folds_keep_groups_together_and_both_classes(self, rng):
        labels, groups = np.tile([0, 1], 20), np.repeat([str(i) for i in range(10)], 4)
        for train, test in folds(labels, groups):
            assert not set(groups[train]) & set(groups[test])
            assert len(set(labels[train])) == 2

    def test_no_folds_from_one_group(self):
        assert folds(np.array([0, 0, 1, 1]), ["a", "a", "b", "c"]) == []
        assert (out_of_fold_scores(np.eye(4), np.array([0, 0, 1, 1]), []) == 0).all()
