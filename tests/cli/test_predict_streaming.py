"""Verdicts as they come: in order, from wherever the images lie, in memory that does not grow with their number."""

import csv
import io
import json
import sys
import weakref
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dna_probe
from dna_probe.cli import main
from dna_probe.collection import Options
from dna_probe.detector import PORTION, Detector
from dna_probe.errors import DataError, NumericalError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sources import EncodedImage

PLANTED = Path(__file__).parent.parent / "planted.py"


def pictures(count: int) -> list[np.ndarray]:
    spec = spec_from_file_location("planted_images", PLANTED)
    planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    return planted.images(count, seed=7)[0]


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def detector() -> Detector:
    found = pictures(8)
    layers = ["blocks.3.hook_resid_post"]
    return dna_probe.fit(f"{PLANTED}:Planted", (found, [0] * 8 + [1] * 8), layers=layers, views=())


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory) -> Path:
    return detector.save(tmp_path_factory.mktemp("saved") / "detector")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Ten images and a broken one, in natural order."""
    root = tmp_path_factory.mktemp("images")
    for i, picture in enumerate(pictures(5)):
        (root / f"{i}.png").write_bytes(png(picture))
    (root / "10.png").write_bytes(b"no image")
    return [root / f"{i}.png" for i in range(11)]


class Alive:
    """Counts the objects that pass and are still there."""

    def __init__(self):
        self.now = self.most = self.passed = 0

    def watch(self, value):
        self.now, self.passed = self.now + 1, self.passed + 1
        self.most = max(self.most, self.now)
        weakref.finalize(value, self._gone)
        return value

    def _gone(self):
        self.now -= 1


class TestStream:
    def test_it_says_what_judge_says(self, detector):
        few = pictures(2)
        images = [*few, Path("missing.png"), png(few[0]), EncodedImage("a", b""), EncodedImage("a", b"x")]
        told = list(detector.stream(iter(images), Options(batch_size=2)))
        assert told == detector.judge(images, Options(batch_size=2))
        assert [p.path for p in told[-4:]] == ["missing.png", "images[5]", "a", "a"]
        assert [bool(p.error) for p in told] == [False] * 4 + [True, False, True, True]
        assert "empty" in told[-2].error and "not an image" in told[-1].error

    def test_names_count_through_the_portions(self, detector):
        count = 3 * PORTION
        images = [None if i % 10 == 5 else picture for i, picture in enumerate(pictures(count // 2))]
        told = list(detector.stream((image for image in images), Options(batch_size=1, workers=0)))
        assert [p.path for p in told] == [f"images[{i}]" for i in range(count)]
        assert [p.error is not None for p in told] == [image is None for image in images]

    def test_nothing_is_read_ahead_of_what_is_asked_for(self, detector):
        taken = 0

        def sources():
            nonlocal taken
            for i in range(10_000):
                taken += 1
                yield Path(f"{i}.png")

        stream = detector.stream(sources(), Options(batch_size=2))
        assert next(stream).path == "0.png" and taken == 2 * PORTION
        assert next(stream).path == "1.png" and taken == 2 * PORTION

    @pytest.mark.parametrize("workers", [0, 2])
    def test_few_images_are_in_memory_at_once(self, detector, monkeypatch, workers):
        given, decoded = Alive(), Alive()
        load = Preprocessing.load
        monkeypatch.setattr(Preprocessing, "load", lambda *a, **k: decoded.watch(load(*a, **k)))
        content = png(pictures(1)[0])
        sources = (given.watch(EncodedImage(f"{i}.png", content)) for i in range(300))
        told = [p.path for p in detector.stream(sources, Options(batch_size=4, workers=workers))]
        assert told == [f"{i}.png" for i in range(300)]
        assert given.passed == decoded.passed == 300
        # Two portions of two batches; and decoded, a few batches and what each worker holds.
        assert given.most <= 4 * 4 + 1 and decoded.most <= 4 * 4 + 2 * workers

    def test_a_single_path_is_no_list(self, detector):
        with pytest.raises(DataError, match=r"A list of samples is needed, not the single one 'a\.png'"):
            next(detector.stream("a.png"))

    def test_name_and_modality(self, detector):
        assert detector.name == detector.backbone.name and detector.modality == "image"


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def give_on_stdin(monkeypatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


class TestSources:
    def told(self, capsys, saved, *paths, status=3) -> list[dict]:
        ended, text, _ = run(capsys, "predict", saved, *paths, "--json", "--batch-size", 2, "--device", "cpu")
        assert ended == status
        return json.loads(text)["predictions"]

    def test_folder_glob_list_and_zip_agree(self, capsys, saved, files, tmp_path, monkeypatch):
        folder = files[0].parent
        by_folder = self.told(capsys, saved, folder)
        assert [one["path"] for one in by_folder] == [str(file) for file in files]
        assert set(by_folder[0]) == {"path", "probability", "verdict", "threshold"}
        assert set(by_folder[10]) == {"path", "error"} and "not an image" in by_folder[10]["error"]
        assert self.told(capsys, saved, folder / "*.png") == by_folder
        give_on_stdin(monkeypatch, b"\n".join(str(file).encode() for file in files).replace(b"\n", b"\r\n\n  \n", 3))
        assert self.told(capsys, saved, "-") == by_folder

        archive = tmp_path / "all.zip"
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("notes.txt", "no image")
            for file in reversed(files):
                opened.write(file, f"inside/{file.name}")
        names = [f"{archive}/inside/{file.name}" for file in files]
        by_zip = self.told(capsys, saved, archive)
        assert by_zip == [one | {"path": name} for one, name in zip(by_folder, names, strict=True)]
        assert self.told(capsys, saved, tmp_path / "*.zip") == by_zip

    def test_arguments_keep_their_order(self, capsys, saved, files, monkeypatch):
        give_on_stdin(monkeypatch, f"{files[3]}\nmissing.png\n".encode())
        told = self.told(capsys, saved, files[7], "-", files[1])
        assert [one["path"] for one in told] == [str(files[7]), str(files[3]), "missing.png", str(files[1])]
        assert told[2]["error"] == "no such file"

    def test_names_of_any_bytes(self, capsys, saved, files, monkeypatch, tmp_path):
        odd = tmp_path / "caf\udce9.png"
        odd.write_bytes(files[0].read_bytes())
        give_on_stdin(monkeypatch, bytes(tmp_path) + b"/caf\xe9.png\n")
        assert self.told(capsys, saved, "-", status=0)[0]["path"] == str(odd)

    def test_names_of_any_bytes_in_a_table_and_as_csv(self, capsysbinary, saved, files, tmp_path):
        (tmp_path / "caf\udce9.png").write_bytes(files[0].read_bytes())
        for form, name in (([], "caf\N{REPLACEMENT CHARACTER}.png".encode()), (["--csv"], b"/caf\xe9.png,")):
            status, text, _ = run(capsysbinary, "predict", saved, tmp_path, *form)
            assert status == 0 and name in text

    @pytest.mark.parametrize(
        ("paths", "stdin", "message"),
        [
            (["-"], b"\n  \n", "No paths came on standard input"),
            (["-", "-"], b"a.png\n", "Standard input can be read once"),
            (["nowhere"], b"", "No such file or folder: nowhere"),
            (["broken.zip"], b"", "broken.zip cannot be read as a zip archive"),
            (["empty.zip"], b"", "No images in empty.zip"),
        ],
    )
    @pytest.mark.parametrize("form", ["--json", "--csv"])
    def test_what_yields_nothing_is_told(self, capsys, saved, monkeypatch, tmp_path, paths, stdin, message, form):
        monkeypatch.chdir(tmp_path)
        Path("broken.zip").write_bytes(b"PK\3\4 no zip")
        zipfile.ZipFile("empty.zip", "w").close()
        give_on_stdin(monkeypatch, stdin)
        status, out, err = run(capsys, "predict", saved, *paths, form)
        assert status == 2 and not out and message in err


class TestOutput:
    def test_json_is_what_dumping_it_whole_would_give(self, capsys, saved, files):
        status, text, err = run(capsys, "predict", saved, *files[8:], "--json")
        assert status == 3 and f"skipped {files[10]}: not an image" in err
        whole = json.loads(text)
        assert whole["schema"] == "dna_probe.predictions/1" and list(whole) == ["schema", "detector", "predictions"]
        assert text == json.dumps(whole, indent=1) + "\n"

    def test_csv(self, capsys, saved, files):
        _, text, _ = run(capsys, "predict", saved, *files[8:], "--csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["path"] for row in rows] == [str(file) for file in files[8:]]
        assert 0 <= float(rows[0]["probability"]) <= 1 and "not an image" in rows[2]["error"]

    def test_table(self, capsys, saved, files):
        status, text, _ = run(capsys, "predict", saved, *files[9:])
        assert status == 3 and "2 images, threshold 0.500" in text and "error: not an image" in text

    @pytest.mark.parametrize("form", ["--json", "--csv"])
    def test_rows_are_written_as_they_come(self, capsys, saved, files, tmp_path, monkeypatch, form):
        out, seen, stream = tmp_path / "new" / "out.txt", [], Detector.stream

        def watched(self, sources, options=None):
            for prediction in stream(self, sources, options):
                yield prediction
                (beside,) = out.parent.iterdir()
                seen.append(prediction.path in beside.read_text())

        monkeypatch.setattr(Detector, "stream", watched)
        status, text, _ = run(capsys, "predict", saved, *files[:3], form, "--out", out)
        assert status == 0 and not text and seen == [True] * 3
        assert [path.name for path in out.parent.iterdir()] == ["out.txt"]

    def test_an_answer_cut_off_leaves_what_was_there(self, capsys, saved, files, tmp_path, monkeypatch):
        out, stream = tmp_path / "out.json", Detector.stream
        out.write_text("old")

        def failing(self, sources, options=None):
            yield next(stream(self, sources, options))
            raise NumericalError("An activation is not finite")

        monkeypatch.setattr(Detector, "stream", failing)
        status, _, err = run(capsys, "predict", saved, *files[:3], "--out", out, "--overwrite")
        assert status == 2 and "not finite" in err
        assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out.json"]
