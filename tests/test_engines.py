"""The engines, and that dividing the work changes nothing: what needs no cluster to be shown."""

import pickle
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from dna_probe import collection, shards
from dna_probe.backbones import open_backbone
from dna_probe.cli import main
from dna_probe.collection import NoReadableImage, Options, collect_features, collect_moments
from dna_probe.engines import SHARD, Local, Processes, open_engine, shard_size
from dna_probe.errors import DnaProbeError, NumericalError
from dna_probe.gradients import GRADIENT_FIELDS, GradientRequest, collect_gradients, collect_many_gradients
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading, map_site
from dna_probe.scoring import reference_head

from .planted import Planted, images

ELSEWHERE = Options(engine="elsewhere", workers=0)


class Shipped(Local):
    """An engine that sends all but the backbone as bytes, as a cluster does."""

    def map(self, function, parts, *shared):
        feed, backbone, options = (
            pickle.loads(pickle.dumps(shared[0])),
            shared[1],
            pickle.loads(pickle.dumps(shared[2])),
        )
        return super().map(function, (pickle.loads(pickle.dumps(part)) for part in parts), feed, backbone, options)


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(shards, "open_engine", lambda name: Shipped())


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def data():
    """Three shards of pictures; the first, one in the second and all of the last cannot be read."""
    pictures, labels = images(SHARD)
    pictures[0], pictures[SHARD + 5] = b"rubbish", b""
    return ImageSet((*pictures, b"1", b"2"), [*labels, 0, 1])


@pytest.fixture(scope="module")
def readings(backbone):
    return [layer_reading(site) for site in backbone.layers]


class TestEngines:
    @pytest.mark.parametrize("engine", [Local(), Processes(2)])
    def test_results_come_in_order(self, engine):
        assert list(engine.map(pow, range(5), 2)) == [0, 1, 4, 9, 16]

    def test_names(self):
        assert open_engine("local") == Local() and open_engine("local", 3) == Processes(3)
        with pytest.raises(DnaProbeError, match=r"Unknown engine 'rai'\. Did you mean 'ray'\?"):
            open_engine("rai")

    def test_without_ray(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(DnaProbeError) as raised:
            open_engine("ray")
        assert str(raised.value) == ("The engine 'ray' needs ray. It is not installed. pip install 'dna-probe[ray]'.")

    def test_no_cluster_at_the_address(self, monkeypatch):
        ray = pytest.importorskip("ray")
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with pytest.raises(DnaProbeError, match=r"There is no Ray cluster at 127.0.0.1:1\. .*refused\. Start one"):
            open_engine("ray")

    @pytest.mark.parametrize(("batch_size", "size"), [(1, 64), (16, 64), (7, 70), (64, 64), (100, 100)])
    def test_a_shard_is_whole_batches(self, batch_size, size):
        assert shard_size(batch_size) == size

    def test_the_command_line_says_what_is_wrong(self, capsys, tmp_path):
        assert main(["locate", "--engine", "rey"]) == 2
        assert "Did you mean 'ray'?" in capsys.readouterr().err
        assert main(["locate", "--out", "s3://bucket/run"]) == 2
        assert "s3:/bucket/run cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("elsewhere")
class TestShards:
    @pytest.mark.parametrize("batch_size", [16, 7])
    def test_features(self, backbone, data, readings, batch_size):
        sites = [map_site(backbone, site) for site in backbone.layers]
        one, other = (
            collect_features(backbone, data, readings, sites, replace(options, batch_size=batch_size))
            for options in (Options(), ELSEWHERE)
        )
        assert one.images.names == other.images.names and len(one.images) == 2 * SHARD - 2
        assert one.images.skipped == other.images.skipped
        assert [name for name, _ in one.images.skipped] == [
            f"images[{i}]" for i in (0, SHARD + 5, 2 * SHARD, 2 * SHARD + 1)
        ]
        for reading in readings:
            np.testing.assert_array_equal(one.values[reading.name], other.values[reading.name])
        for site in sites:
            for part, values in one.attention[site.name].items():
                np.testing.assert_array_equal(values, other.attention[site.name][part])

    def test_moments(self, backbone, data, readings):
        one, other = (collect_moments(backbone, data, readings, options) for options in (Options(), ELSEWHERE))
        for name, moments in one.items():
            for label, found in moments.classes.items():
                same = other[name].classes[label]
                assert found.count == same.count == SHARD - 1
                for part in ("mean", "m2", "low", "high"):
                    np.testing.assert_array_equal(getattr(found, part), getattr(same, part))

    def test_gradients(self, backbone, data, readings):
        head = reference_head(collect_features(backbone, data, readings), readings[-1])
        (one, slopes), (other, others) = (
            collect_gradients(backbone, data, readings, head, options) for options in (Options(), ELSEWHERE)
        )
        assert one.images.names == other.images.names and one.images.skipped == other.images.skipped
        for reading in readings:
            np.testing.assert_array_equal(one.values[reading.name], other.values[reading.name])
            for part in GRADIENT_FIELDS:
                np.testing.assert_array_equal(getattr(slopes, part)[reading.name], getattr(others, part)[reading.name])

    def test_many_gradients(self, backbone, data, readings):
        readable = data.subset(slice(1, 2 * SHARD)).subset(np.arange(2 * SHARD - 1) != SHARD + 4)
        features = collect_features(backbone, readable, readings)
        heads = [reference_head(features, reading) for reading in readings[-2:]]
        # One of images in both shards, and one of images of the last alone.
        asked = [(np.arange(len(readable)), readings[:2], heads[0]), (np.arange(70, 90), readings[1:3], heads[1])]
        requests = [GradientRequest(*one) for one in asked]
        found, same = (
            collect_many_gradients(backbone, readable, requests, options) for options in (Options(), ELSEWHERE)
        )
        for one, other, request in zip(found, same, requests, strict=True):
            for part in GRADIENT_FIELDS:
                for reading in request.readings:
                    np.testing.assert_array_equal(getattr(one, part)[reading.name], getattr(other, part)[reading.name])

    def test_the_cache_is_written_here(self, backbone, data, readings, tmp_path, monkeypatch):
        options = replace(ELSEWHERE, cache=tmp_path)
        first = collect_features(backbone, data, readings, options=options)
        monkeypatch.setattr(collection, "_feed_features", lambda *_, **__: pytest.fail("computed again"))
        again = collect_features(backbone, data.subset(slice(1, 60)), readings, options=options)
        np.testing.assert_array_equal(again.of(readings), first.of(readings)[:59])

    def test_nothing_readable(self, backbone, readings):
        for collect in (collect_features, collect_moments):
            with pytest.raises(NoReadableImage):
                collect(backbone, ImageSet((b"1", b"2"), [0, 1]), readings, options=ELSEWHERE)


class TestFailure:
    def test_an_error_ends_the_threads_and_removes_the_hooks(self, readings):
        model = Planted()
        nn.init.constant_(model.blocks[3].mlp[0].bias, float("nan"))
        backbone = open_backbone(model)
        before = threading.active_count()
        with pytest.raises(NumericalError):
            collect_features(backbone, ImageSet(*images(40)), readings, options=Options(workers=2, batch_size=4))
        assert threading.active_count() == before
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
