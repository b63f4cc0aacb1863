"""Two Ray workers on this machine: the same results as in this process, and what happens when a worker dies."""

import importlib.util
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dna_probe.backbones import open_backbone
from dna_probe.cli import main
from dna_probe.collection import Options, collect_features, collect_moments
from dna_probe.detector import load
from dna_probe.engines import SHARD, Cluster
from dna_probe.errors import BackboneError, DataError, DnaProbeError, NumericalError
from dna_probe.evaluation.harness import benchmark
from dna_probe.evaluation.preparation import Settings
from dna_probe.evaluation.protocols import Plan
from dna_probe.gradients import GRADIENT_FIELDS, collect_gradients
from dna_probe.images.sets import ImageSet
from dna_probe.location import layer_reading, map_site
from dna_probe.scoring import reference_head

from .planted import Planted, images

ray = pytest.importorskip("ray")

RECIPE = Path(__file__).parent.parent / "recipes" / "ray"
LOCAL, RAY = Options(batch_size=8), Options(batch_size=8, engine="ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception:  # Ray gives itself fifteen seconds, which are few on a machine that is busy with other tests
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def planted():
    return open_backbone(Planted())


@pytest.fixture(scope="module")
def data():
    pictures, labels = images(SHARD)
    return ImageSet((*pictures, b"rubbish"), [*labels, 1])


def test_features_moments_and_gradients_are_those_of_this_process(planted, data):
    readings, sites = [layer_reading(site) for site in planted.layers], [map_site(planted, planted.layers[-1])]
    here, there = (collect_features(planted, data, readings, sites, options) for options in (LOCAL, RAY))
    assert here.images.names == there.images.names and here.images.skipped == there.images.skipped != ()
    np.testing.assert_array_equal(here.of(readings), there.of(readings))
    for part, values in here.attention[sites[0].name].items():
        np.testing.assert_array_equal(values, there.attention[sites[0].name][part])
    moments = [collect_moments(planted, data, readings, options) for options in (LOCAL, RAY)]
    for reading in readings:
        for label in (0, 1):
            one, other = (found[reading.name].classes[label] for found in moments)
            assert one.count == other.count == SHARD
            for part in ("mean", "m2", "low", "high"):
                np.testing.assert_allclose(getattr(one, part), getattr(other, part), rtol=1e-12, atol=1e-12)
    head = reference_head(here, readings[-1])
    slopes = [collect_gradients(planted, data, readings, head, options)[1] for options in (LOCAL, RAY)]
    for part in GRADIENT_FIELDS:
        for reading in readings:
            one, other = (getattr(found, part)[reading.name] for found in slopes)
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_a_change_of_the_weights_reaches_the_workers(data):
    model = Planted()
    backbone = open_backbone(model)
    readings = [layer_reading(backbone.layers[-1])]
    first = collect_features(backbone, data, readings, options=RAY).of(readings)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    second = collect_features(backbone, data, readings, options=RAY).of(readings)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, collect_features(backbone, data, readings, options=LOCAL).of(readings))


def test_what_cannot_be_sent_is_said(data):
    model = Planted()
    model.lock = threading.Lock()
    backbone = open_backbone(model)
    with pytest.raises(BackboneError, match=r"Planted cannot be sent to the workers. It cannot be pickled: .*lock"):
        collect_features(backbone, data, [layer_reading(backbone.layers[0])], options=RAY)


def save_images(root: Path, count: int) -> None:
    for i, (picture, label) in enumerate(zip(*images(count), strict=True)):
        place = root / ("fake/checkerboard" if label else "real")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")


def test_fit_on_the_command_line(tmp_path, capsys):
    """A backbone from a file, whose Python module no worker could import."""
    planted = Path(__file__).parent / "planted.py"
    save_images(tmp_path / "data", 40)
    for engine in ("local", "ray"):
        command = ["fit", str(tmp_path / "data"), "--backbone", f"{planted}:Planted", "--scorer", "triadic"]
        command += ["--shots", "36", "--engine", engine, "--out", str(tmp_path / engine), "--quiet"]
        assert main(command) == 0, capsys.readouterr().err
    here, there = load(tmp_path / "local"), load(tmp_path / "ray")
    assert here.units == there.units
    paths = sorted((tmp_path / "data").rglob("*.png"))
    np.testing.assert_array_equal(here.predict_proba(paths), there.predict_proba(paths, RAY))


def test_benchmark_cells(planted, tmp_path):
    pictures, labels = images(16)
    made = ImageSet(tuple(pictures), labels, origin="planted")
    settings = Settings(methods=("dna", "last-linear"), plan=Plan(shots=(4,), draws=2))
    runs = [
        benchmark(planted, made, settings=settings, state=tmp_path / options.engine, options=options)
        for options in (LOCAL, RAY)
    ]
    assert len(runs[0].outcomes) == 2
    for one, other in zip(runs[0].outcomes, runs[1].outcomes, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert runs[0].result.summary == runs[1].result.summary


def test_the_recipe(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("recipe_of_ray", RECIPE / "run.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    save_images(tmp_path / "data", 12)
    recipe.main(
        [str(tmp_path / "data"), "--shots", "8", "--batch-size", "4", "--out", str(tmp_path / "det"), "--check"]
    )
    said = capsys.readouterr().out
    assert "2 cores" in said and said.count(": equal") == 4 and "DIFFERENT" not in said
    assert len(load(tmp_path / "det").units) > 0


def test_the_cluster_file():
    config = yaml.safe_load((RECIPE / "cluster.yaml").read_text())
    assert {"cluster_name", "provider", "available_node_types", "head_node_type"} <= config.keys()
    assert config["head_node_type"] in config["available_node_types"]
    assert any("dna-probe[ray]" in command for command in config["setup_commands"])


# Those in which workers die come last: what follows would wait for new ones to start.


def test_errors_of_a_worker_are_those_of_this_process(data):
    model = Planted()
    torch.nn.init.constant_(model.blocks[3].mlp[0].bias, float("nan"))
    broken = open_backbone(model)
    readings = [layer_reading(site) for site in broken.layers]
    said = []
    for options in (LOCAL, RAY):
        with pytest.raises(NumericalError) as raised:
            collect_features(broken, data, readings, options=options)
        said.append(str(raised.value))
    assert said[0] == said[1]

    def fail(part):
        raise DataError(f"{part} is wrong", "It was meant to be", "Leave it out")

    with pytest.raises(DataError, match=r"^7 is wrong. It was meant to be. Leave it out.$"):
        list(Cluster.connect().map(fail, [7]))


@dataclass(frozen=True)
class Reported:
    """A picture that notes in a file who read it, and kills the worker that reads it first if it is told to."""

    name: str
    content: bytes
    log: Path
    deadly: bool = False

    def read_bytes(self) -> bytes:
        first = self.name not in (self.log.read_text() if self.log.exists() else "")
        with open(self.log, "a") as log:
            log.write(f"{self.name} {os.getpid()}\n")
        if self.deadly and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.content


def test_a_worker_that_is_killed_costs_its_shard_alone(planted, tmp_path):
    def encoded(pixels):
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    pictures, labels = images(3 * SHARD // 2)
    deadly, log = SHARD + 9, tmp_path / "log"
    sources = [Reported(f"<{i}>", encoded(p), log, i == deadly) for i, p in enumerate(pictures)]
    readings = [layer_reading(planted.layers[0])]
    there = collect_features(planted, ImageSet(tuple(sources), labels), readings, options=replace(RAY, workers=0))
    here = collect_features(planted, ImageSet(tuple(pictures), labels), readings, options=LOCAL)
    np.testing.assert_array_equal(here.of(readings), there.of(readings))
    read = [int(line.partition(">")[0][1:]) for line in log.read_text().splitlines()]
    again = [i for i in range(len(pictures)) if read.count(i) > 1]
    assert again == list(range(SHARD, deadly + 1)) and set(read) == set(range(len(pictures)))


def test_a_part_that_kills_every_worker_is_an_error(monkeypatch):
    monkeypatch.setattr("dna_probe.engines.MAX_RETRIES", 1)

    def kill(part):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DnaProbeError, match="The workers that had a part of the work died, 2 of them"):
        list(Cluster.connect().map(kill, [0]))
