"""The service as a process of its own, with real clients, among them a browser."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dna_probe
from dna_probe.cli import main

from . import chromium

httpx = pytest.importorskip("httpx")
for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

LIMITS = {"--max-bytes": 400_000, "--max-pixels": 300_000, "--max-files": 3, "--max-batch": 16}


def picture(seed: int, side: int = 72) -> bytes:
    """A PNG file: smooth noise; with an odd seed, a checkerboard on it."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    board = 12 * (seed % 2) * (np.indices((side, side)).sum(0) % 2)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(smooth) * 0.9 + board, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def detector():
    labels = [i % 2 for i in range(16)]
    images = [np.asarray(Image.open(io.BytesIO(picture(i)))) for i in range(16)]
    return dna_probe.fit("nano", (images, labels), views=())


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    return detector.save(tmp_path_factory.mktemp("served") / "detector")


@pytest.fixture(scope="module")
def service(folder):
    """The address of ``dna-probe serve``; at the end it is asked to stop, and must end well."""
    limits = [str(part) for pair in LIMITS.items() for part in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "dna_probe", "serve", str(folder), "--port", "0", "--device", "cpu", *limits],
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.readline()
    found = re.search(r"^serving .* on (http://127\.0\.0\.1:\d+)$", said)
    assert found, said + process.stderr.read()
    yield found[1]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "stopped\n" and process.returncode == 0


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service, timeout=60) as client:
        yield client


def send(client, content: bytes, name: str = "a.png", route: str = "/predict"):
    return client.post(route, files={"file": (name, content)})


class TestPredict:
    def test_a_form_and_a_body_give_the_same_answer(self, client, detector):
        form = send(client, picture(3), "three.png")
        body = client.post("/predict?name=three.png", content=picture(3), headers={"content-type": "image/png"})
        assert form.status_code == body.status_code == 200 and form.json() == body.json()
        answer = form.json()
        (judged,) = detector.judge([picture(3)])
        assert set(answer) == {*judged.to_json(), "model_version"} and answer["path"] == "three.png"
        assert answer["probability"] == pytest.approx(judged.probability, abs=1e-6)
        assert answer["verdict"] == judged.verdict and answer["threshold"] == judged.threshold
        digests = re.fullmatch(r"[0-9a-f]{12}-([0-9a-f]{12})", answer["model_version"])
        assert detector.backbone.weight_hash.startswith(digests[1])

    def test_many_concurrent_clients(self, service, detector):
        expected = [p.probability for p in detector.judge([picture(i) for i in range(64)])]
        start = threading.Barrier(64)

        def ask(i: int) -> dict:
            with httpx.Client(base_url=service, timeout=60) as client:
                start.wait(60)
                answer = send(client, picture(i), f"{i}.png")
                assert answer.status_code == 200, answer.text
                return answer.json()

        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, range(64)))
        assert [answer["path"] for answer in answers] == [f"{i}.png" for i in range(64)]
        np.testing.assert_allclose([answer["probability"] for answer in answers], expected, atol=1e-6)
        assert len({answer["model_version"] for answer in answers}) == 1

    def test_a_batch_keeps_its_order_and_names_what_is_unreadable(self, client):
        parts = [("same.png", picture(0)), ("same.png", b"no image"), ("c.png", b"")]
        answer = client.post("/predict/batch", files=[("file", part) for part in parts])
        assert answer.status_code == 200
        first, second, third = answer.json()["predictions"]
        assert first["verdict"] and "error" not in first
        assert "not an image" in second["error"] and "empty" in third["error"]
        assert [one["path"] for one in (first, second, third)] == ["same.png", "same.png", "c.png"]
        assert {one["model_version"] for one in (first, second, third)} == {answer.json()["model_version"]}


class TestRefusals:
    def error(self, answer, status: int) -> dict:
        assert answer.status_code == status, answer.text
        found = answer.json()["error"]
        assert set(found) == {"what", "why", "fix"}
        return found

    def test_an_unreadable_image(self, client):
        error = self.error(send(client, b"no image"), 422)
        assert error["what"] == "Cannot read a.png" and "not an image" in error["why"]
        assert "empty" in self.error(send(client, b""), 422)["why"]

    def test_too_many_pixels(self, client):
        buffer = io.BytesIO()
        Image.new("RGB", (1000, 500)).save(buffer, "PNG")
        error = self.error(send(client, buffer.getvalue()), 422)
        assert error["why"] == "too many pixels: 1000 x 500 is more than the limit of 0.3 million"

    def test_too_many_bytes_announced(self, client):
        error = self.error(send(client, bytes(500_000)), 413)
        assert error == {
            "what": "The request is too large",
            "why": "400000 bytes are the limit",
            "fix": "Send fewer or smaller files",
        }

    def test_too_many_bytes_are_noticed_while_they_come(self, service):
        host, port = service.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head.encode())
            for _ in range(5):
                connection.sendall(b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n")
            # The body has no end, and is answered all the same.
            assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]

    def test_too_many_files(self, client):
        files = [("file", (f"{i}.png", picture(i))) for i in range(4)]
        assert (
            self.error(client.post("/predict/batch", files=files), 413)["what"] == "4 files came, and 3 are the limit"
        )
        assert "/predict/batch" in self.error(client.post("/predict", files=files[:2]), 422)["fix"]

    @pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
    @pytest.mark.parametrize("route", ["/predict", "/predict/batch", "/explain"])
    def test_other_content_types(self, client, route, kind):
        error = self.error(client.post(route, content=b"{}", headers={"content-type": kind} if kind else {}), 415)
        assert error["what"] == f"The content type {kind or '(none)'} cannot be read here"
        assert "multipart/form-data" in error["fix"]

    def test_forms_without_a_file(self, client):
        assert "no file" in self.error(client.post("/predict", data={}, files={"file": (None, "text")}), 422)["what"]
        error = self.error(client.post("/predict", files={"image": ("a.png", picture(0))}), 422)
        assert error == {"what": "The form has a field 'image'", "why": "", "fix": "Name the field of each file 'file'"}
        damaged = {"content-type": "multipart/form-data; boundary=x"}
        assert self.error(client.post("/predict", content=b"nothing", headers=damaged), 422)["what"]

    def test_other_routes_and_methods(self, client):
        assert "/predict/batch" in self.error(client.get("/predicted"), 404)["fix"]
        assert "GET /predict" in self.error(client.get("/predict"), 405)["what"]


class TestWhatElseItTells:
    def test_health(self, client, detector):
        health = client.get("/health").json()
        assert health["ready"] is True and health["backbone"] == "nano" and health["modality"] == "image"
        assert health["model_version"] == send(client, picture(0)).json()["model_version"]
        assert health["unsure"] == list(detector.anchor.band_) and health["explain"] is True
        assert health["limits"] == {"bytes": 400_000, "pixels": 300_000, "files": 3}

    def test_metrics_count_what_was_asked(self, client):
        before = self.read(client)
        send(client, picture(0))
        send(client, b"no image")
        client.post("/predict/batch", files=[("file", ("a.png", picture(i))) for i in range(3)])
        client.post("/explain", files={"file": ("a.png", picture(0))})
        client.get("/nowhere")
        after = self.read(client)

        def more(name: str) -> float:
            return after.get(name, 0) - before.get(name, 0)

        assert more('dna_probe_requests_total{route="/predict",status="200"}') == 1
        assert more('dna_probe_requests_total{route="/predict",status="422"}') == 1
        assert more('dna_probe_requests_total{route="/predict/batch",status="200"}') == 1
        assert more('dna_probe_requests_total{route="other",status="404"}') == 1
        assert more('dna_probe_samples_total{verdict="unreadable"}') == 1
        assert sum(more(f'dna_probe_samples_total{{verdict="{v}"}}') for v in ("real", "fake", "unsure")) == 4
        # What is explained runs once more, and is no other sample.
        assert more("dna_probe_batch_size_sum") == 6 and 1 <= more("dna_probe_batch_size_count") <= 6
        assert more('dna_probe_request_seconds_count{route="/predict"}') == 2
        assert after["dna_probe_queue_length"] == 0
        assert not any(name.startswith("python_") for name in after)

    def read(self, client) -> dict[str, float]:
        text = client.get("/metrics").text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def test_the_schema_names_the_routes(self, client):
        schema = client.get("/openapi.json").json()
        assert {"/predict", "/predict/batch", "/explain", "/health", "/metrics"} <= set(schema["paths"])
        assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]

    def test_explanation(self, client, detector):
        answer = send(client, picture(5), route="/explain").json()
        assert {"path", "probability", "verdict", "threshold", "model_version"} <= set(answer)
        assert answer["probability"] == send(client, picture(5)).json()["probability"]
        assert answer["crop"].startswith("data:image/png;base64,")
        assert [layer["site"] for layer in answer["layers"]] == list(detector.layers.layers)
        assert np.sum(answer["layers"][0]["map"]) == pytest.approx(1, abs=1e-5)
        json.dumps(answer, allow_nan=False)


def test_the_benchmark_asks_all_at_once(service, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import serving as benchmark

    images = [benchmark.photograph(number) for number in range(3)]
    assert benchmark.seconds_of_batch(service, images) > 0
    waited, failed = benchmark.under_load(service, [*images, b"no image"], 2)
    assert len(waited) == 8 and failed == 2


def test_sigterm_loses_no_request():
    """When the signal comes, requests are in a batch, queued, and on their way."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "slow_service.py")], stdout=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    asked, answered = [], []

    def keep_asking(i: int) -> None:
        """One request after the other on one connection, until the service asks to leave it or refuses a new one."""
        with httpx.Client(base_url=url, timeout=120) as client:
            while True:
                asked.append(i)
                answer = send(client, bytes(100 + i))
                answered.append(i)
                assert answer.status_code == 200 and answer.json()["probability"] == (100 + i) / 1000
                if answer.headers.get("connection") == "close":
                    return

    with ThreadPoolExecutor(24) as pool:
        clients = [pool.submit(keep_asking, i) for i in range(24)]
        while len(set(answered)) < 24 and not any(client.done() for client in clients):
            time.sleep(0.01)
        in_flight = len(asked) - len(answered)
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.result(120)
    assert in_flight and sorted(asked) == sorted(answered) and set(answered) == set(range(24))
    assert process.wait(30) == 0 and process.stdout.read() == "stopped\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_signal_right_after_the_line_ends_it_well():
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "slow_service.py")], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and process.stdout.read() == "stopped\n"


class TestCommand:
    def test_its_limits_are_those_behind_it(self):
        """Written out in the command, so that asking for help imports neither."""
        from dna_probe.images import reading
        from dna_probe.serving import batching

        command = sys.modules["dna_probe.cli.serve"]
        assert (command.MAX_PIXELS, command.MAX_FILES) == (reading.MAX_PIXELS, batching.MAX_WAITING)

    def test_a_host_that_is_no_name(self, folder, capsys):
        assert main(["serve", str(folder), "--host", "a..b"]) == 2
        assert "Nothing can listen on a..b" in capsys.readouterr().err

    @pytest.mark.parametrize("limit", [("--max-pixels", "200000000"), ("--max-files", "5000")])
    def test_limits_above_what_can_be_served(self, folder, capsys, limit):
        assert main(["serve", str(folder), *limit]) == 2
        assert "should be less than or equal to" in " ".join(capsys.readouterr().err.split())

    @pytest.fixture(autouse=True)
    def untrimmed(self, monkeypatch):
        monkeypatch.setattr(dna_probe.Detector, "compile", lambda self: self)

    def test_a_taken_port_is_told(self, folder, capsys):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            status = main(["serve", str(folder), "--port", str(taken.getsockname()[1])])
        said = capsys.readouterr().err
        assert status == 2 and "Nothing can listen on 127.0.0.1" in said and "--port" in said

    def test_what_is_no_detector(self, tmp_path, capsys):
        assert main(["serve", str(tmp_path)]) == 2
        assert "is not a detector" in capsys.readouterr().err

    def test_another_host_is_warned_of(self, folder, capsys, monkeypatch):
        from dna_probe.serving import server

        monkeypatch.setattr(server, "run", lambda application, listening, ready: listening.close())
        assert main(["serve", str(folder), "--port", "0", "--host", "0.0.0.0"]) == 0
        assert "warning: 0.0.0.0 can be reached from other machines" in capsys.readouterr().err
        assert main(["serve", str(folder), "--port", "0"]) == 0
        assert "warning" not in capsys.readouterr().err

    def test_the_extra_is_named_where_it_lacks(self, tmp_path, capsys, monkeypatch):
        # The package's attribute of this name is the command.
        monkeypatch.setattr(sys.modules["dna_probe.cli.serve"], "find_spec", lambda module: None)
        assert main(["serve", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "'dna-probe serve' needs FastAPI" in said and "pip install 'dna-probe[serve]'" in said


@pytest.mark.skipif(chromium.find() is None, reason="needs the Debian package chromium")
def test_the_page_in_a_browser(service, detector, tmp_path):
    for name, content in {"photo <b>.png": picture(7, 90), "broken.png": b"no image"}.items():
        (tmp_path / name).write_bytes(content)
    judged = detector.judge([picture(7, 90)])[0]
    with chromium.Browser(tmp_path / "profile", f"{service}/") as page:
        page.wait_for("document.querySelector('#version') && document.querySelector('#version').textContent")
        page.choose_file("#file", tmp_path / "photo <b>.png")
        page.wait_for("!document.querySelector('#shift').hidden && !!document.querySelector('#numbers table')")
        assert page.evaluate("document.querySelector('#verdict').textContent").lower() == judged.verdict
        assert f"{100 * judged.probability:.1f} %" in page.evaluate("document.querySelector('#sentence').textContent")
        assert page.evaluate("document.querySelector('#file-name').textContent") == "photo <b>.png"
        assert page.evaluate("document.querySelector('#map').width") > 0
        assert page.evaluate("document.querySelectorAll('#strip canvas').length") == 3 * len(detector.layers.selected)
        assert page.evaluate("document.querySelectorAll('#chart polyline').length") == 2
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(tmp_path / "page.png")
        assert np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).std() > 10
        page.choose_file("#file", tmp_path / "broken.png")
        assert "Not an image" in page.wait_for(
            "!document.querySelector('#problem').hidden && document.querySelector('#problem').textContent"
        )
        assert page.evaluate("document.querySelector('#result').hidden")
        assert {url.split("/")[2] for url in page.requests if not url.startswith(("data:", "blob:"))} == {
            service.removeprefix("http://")
        }
        # The only thing to complain of is the answer to the broken file.
        assert all("422" in complaint for complaint in page.complaints), page.complaints
