"""The routes in one process: other modalities, exported detectors, failures, and how the page is sent."""

import asyncio

import numpy as np
import pytest

import dna_probe
from dna_probe.anchor import Calibration
from dna_probe.detector import Prediction
from dna_probe.errors import NumericalError
from dna_probe.serving.explanation import _onto, explain, why_not

from .. import planted

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")


class Exported:
    """What an exported detector, or one of another modality, shows of itself."""

    name, threshold, calibration = "made up", 0.5, Calibration(1.0, 0.0, low=0.4, high=0.6)

    def __init__(self, modality: str = "image"):
        self.modality = modality

    def stream(self, sources, options=None):
        for source in sources:
            if source.read_bytes() == b"not finite":
                raise NumericalError("A probability is not finite", source.name)
            yield Prediction(source.name, 0.25, "real", 0.5)


@pytest.fixture
def client(request):
    from starlette.testclient import TestClient

    from dna_probe.serving.application import create_application
    from dna_probe.serving.batching import Batcher
    from dna_probe.serving.metrics import Metrics
    from dna_probe.serving.uploads import Limits

    detector, metrics = Exported(getattr(request, "param", "image")), Metrics("1", "made up")
    batcher = Batcher(detector, wait=0, observe=metrics.count_batch)
    with TestClient(create_application(detector, "1", batcher, metrics, Limits()), raise_server_exceptions=False) as c:
        c.batcher = batcher
        yield c


def test_an_exported_detector_predicts_and_explains_nothing(client):
    answer = client.post("/predict", files={"file": ("a.png", b"x")})
    expected = {"path": "a.png", "probability": 0.25, "verdict": "real", "threshold": 0.5, "model_version": "1"}
    assert answer.json() == expected
    answer = client.post("/explain", files={"file": ("a.png", b"x")})
    assert answer.status_code == 404 and "exported detector" in answer.json()["error"]["why"]
    health = client.get("/health").json()
    assert health["explain"] is False and health["unsure"] == [0.4, 0.6]


@pytest.mark.parametrize(
    ("client", "kind"), [("text", "text/plain; charset=utf-8"), ("audio", "audio/wav")], indirect=["client"]
)
def test_texts_and_recordings_come_as_bodies_too(client, kind):
    answer = client.post("/predict", content=b"the quick brown fox", headers={"content-type": kind})
    assert answer.status_code == 200 and answer.json()["path"] == client.get("/health").json()["modality"]
    answer = client.post("/predict", content=b"x", headers={"content-type": "image/png"})
    assert answer.status_code == 415


def test_what_fails_inside_is_told_and_harms_no_neighbour(client):
    parts = [("file", ("a.png", b"x")), ("file", ("b.png", b"not finite"))]
    told = client.post("/predict/batch", files=parts).json()["predictions"]
    assert told[0]["verdict"] and told[1]["error"].startswith("A probability is not finite")
    answer = client.post("/predict", files={"file": ("b.png", b"not finite")})
    assert answer.status_code == 422 and "A probability is not finite" in answer.json()["error"]["why"]
    assert client.post("/predict", files={"file": ("a.png", b"x")}).status_code == 200


def test_a_form_that_is_cut_off_is_refused(client):
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="%d.png"\r\n\r\nfile\r\n' % i for i in range(2)
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    whole, cut = (client.post("/predict/batch", content=body + end, headers=headers) for end in (b"--x--\r\n", b""))
    assert whole.status_code == 200 and len(whole.json()["predictions"]) == 2
    assert cut.status_code == 422 and cut.json()["error"]["what"] == "The form is cut off"


def test_bytes_of_all_requests_are_bounded(client, monkeypatch):
    from dna_probe.serving import uploads

    def send(count: int):
        return client.post("/predict", content=bytes(count), headers={"content-type": "image/png"})

    gate = client.app.middleware_stack
    while not isinstance(gate, uploads.Gate):
        gate = gate.app
    monkeypatch.setattr(uploads, "MAX_HELD", 0)
    monkeypatch.setattr(gate, "limit", 1000)
    assert send(900).status_code == 200 and gate.held == 0
    gate.held = 500
    answer = send(900)
    assert answer.status_code == 503 and answer.json()["error"]["what"] == "The service is busy"
    assert gate.held == 500


def test_a_client_that_goes_away_is_no_fault_of_the_service(client):
    answers = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "root_path": ""}
    asyncio.run(client.app({**scope, "headers": [(b"content-type", b"image/png")]}, receive, send))
    assert answers[0]["status"] == 499


def test_once_closed_it_refuses(client):
    client.batcher.close()
    answer = client.post("/predict", files={"file": ("a.png", b"x")})
    assert answer.status_code == 503 and answer.json()["error"]["what"] == "The service is stopping"


def test_the_page_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://www.w3.org" in page.text and page.text.replace("http://www.w3.org", "").count("://") == 0


@pytest.fixture(scope="module")
def data():
    return planted.images(10)


class TestExplanation:
    def explained(self, detector, image):
        found = explain(detector, image, "the image")
        assert found.crop.size == (planted.SIDE, planted.SIDE)
        return found

    def test_patches_and_the_rest_sum_to_the_decision(self, data):
        detector = dna_probe.fit(planted.Planted(), data, layers=["blocks.3.hook_resid_post"], views=())
        assert {reading.reduction for reading in detector.readings} == {"cls", "mean"}
        found = self.explained(detector, data[0][12])
        decision = detector.anchor.decision_function(detector.transform([data[0][12]]))[0]
        patches = found.patches
        total = np.sum(patches["values"]) + patches["other_units"] + patches["bias"]
        assert patches["kind"] == "contribution" and np.shape(patches["values"]) == (4, 4)
        assert total == pytest.approx(decision, rel=1e-4) and patches["decision"] == pytest.approx(total)
        assert f"the {patches['units']} of {len(detector.units)} units" in patches["label"]
        assert [layer["located"] for layer in found.layers] == [i == 3 for i in range(planted.DEPTH)]

    def test_the_patch_that_was_changed_stands_out(self, data):
        detector = dna_probe.fit(
            planted.Planted(), data, layers=["blocks.0.hook_resid_post"], kinds=("mean",), views=()
        )
        image = data[0][0].astype(int)
        image[8:16, 16:24] += (10 * planted.checkerboard(8)[..., None]).astype(int)
        values = np.array(self.explained(detector, np.clip(image, 0, 255).astype(np.uint8)).patches["values"])
        assert np.unravel_index(values.argmax(), values.shape) == (1, 2)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"kinds": ("cls",)}, "no unit is a mean over patches"),
            ({"kinds": ("mean",), "classifier": "rbf_svm"}, "the classifier is not linear"),
        ],
    )
    def test_without_contributions_the_map_of_a_layer_is_shown(self, data, changes, reason):
        detector = dna_probe.fit(planted.Planted(), data, layers=["blocks.3.hook_resid_post"], views=(), **changes)
        found = self.explained(detector, data[0][0])
        assert found.patches["kind"] == "energy" and found.patches["label"].endswith(reason)
        assert found.patches["values"] == found.layers[3]["map"]

    def test_maps_are_those_of_the_report(self, data):
        report = dna_probe.locate_layers(planted.Planted(), data, resamples=5)
        detector = dna_probe.fit(planted.Planted(), data, layers=report, views=())
        layers = [self.explained(detector, image).layers for image, label in zip(*data, strict=True) if label]
        for i in range(planted.DEPTH):
            mean = np.mean([found[i]["map"] for found in layers], axis=0)
            np.testing.assert_allclose(mean, report.maps["fake"][i], atol=1e-5)
            assert layers[0][i]["from_fake"] >= 0 and 0 < layers[0][i]["spread"] <= 1

    def test_a_finer_grid_keeps_the_sum(self, rng):
        values = rng.normal(size=(2, 3))
        fine = _onto(values, (4, 5))
        assert fine.shape == (4, 5) and fine.sum() == pytest.approx(values.sum())
        np.testing.assert_allclose(_onto(values, (4, 6)), values.repeat(2, 0).repeat(2, 1) / 4)
        np.testing.assert_allclose(_onto(values, (2, 3)), values)

    def test_only_images_of_a_whole_detector(self):
        assert "exported" in why_not(Exported())
