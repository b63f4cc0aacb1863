"""The sections of the speed benchmark give their columns, on a tiny model and in one round; nothing is timed here."""

import json
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    """The folder of the benchmark as a package, as its command sees it, with few tools, small sizes and one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import speed.run
        import torch
        from speed import end_to_end, growth, measuring, peers

        opened = cache(peers.opened)
        tools = ("dna_probe `Backbone.capture`", peers.RAW, "raw hooks that detach, no clone")

        def here(function, *arguments):
            return measuring.Peak(3.0, 100.0) if function is peers.peak_memory else function(*arguments)

        for module in (peers, growth):
            patch.setattr(module, "apart", here)
            patch.setattr(module, "opened", opened)
        patch.setattr(peers, "TOOLS", {name: peers.TOOLS[name] for name in tools})
        patch.setattr(growth, "COUNTS", (4, 8))
        patch.setattr(growth, "SITES", (1, 3))
        patch.setattr(growth, "WIDTHS", (peers.TINY,))
        patch.setattr(end_to_end, "PHOTOGRAPH", (50, 40))
        patch.setattr(end_to_end, "LARGE", (80, 60))
        for module in (measuring, speed.run):
            patch.setattr(module, "THREADS", 1)
        # A second thread would mostly wait for the first.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield speed
        torch.set_num_threads(threads)


def test_every_tool_gets_a_row_of_time_memory_and_rightness(speed):
    captures, statistics = islice(speed.peers.peers([speed.peers.TINY], 2, 1), 2)
    found = {row[speed.peers.WHAT]: row for row in captures.rows}
    assert list(found) == [*speed.peers.TOOLS, "bare forward"]
    ours, unsafe = found["dna_probe `Backbone.capture`"], found["raw hooks that detach, no clone"]
    assert ours["time / bare"] > 0 and ours["largest difference"] == "0"
    assert (ours["next module in place"], unsafe["next module in place"]) == ("right", "wrong: overwritten")
    assert (ours["asked for a pattern"], unsafe["asked for a pattern"]) == ("right", "nothing, silently")
    assert ours["fused attention on"] == unsafe["fused attention on"] == "yes"
    assert [row[speed.peers.WHAT] for row in statistics.rows][:2] == [speed.peers.OURS, speed.peers.FLOOR]
    assert all(float(row["largest difference"]) < 1e-5 for row in statistics.rows[:-1])
    assert statistics.rows[0]["next module in place"] == "right"


def test_what_is_asked_for_in_addition(speed, monkeypatch):
    import torch

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile(module, backend="eager"))
    low, compiled = speed.run.on_request(speed.peers.TINY, 2, 1).rows
    assert low["time / plain"] > 0 and compiled["time / plain"] > 0
    assert 0.9 < low["median correlation"] <= 1 and compiled["lowest"] is None


def test_a_tool_that_fails_is_a_result(speed):
    def broken(backbone, names):
        raise ValueError("no such node\nin a long report")

    rows = speed.peers.compared(
        speed.peers.TINY,
        "capture",
        {"broken": broken, speed.peers.RAW: speed.peers.TOOLS[speed.peers.RAW].open},
        speed.peers.RAW,
        2,
        1,
    )
    assert rows[0]["time / bare"] == "ValueError: no such node" and rows[0]["peak / bare"] is None


def test_peaks_are_told_above_what_was_resident_before(speed):
    peak = speed.measuring.apart(speed.measuring.peak_of, partial(np.ones, 4_000_000), 2)
    assert 25 < peak.above < 60 and peak.process > peak.above
    assert speed.peers.peak_memory(speed.peers.TINY, "statistics", speed.peers.OURS, 2).process > 0


def test_growth_is_told_by_images_sites_and_width(speed):
    images, sites, width = speed.growth.growth(speed.peers.TINY, 2, 1)
    assert [row["images"] for row in images.rows] == ["4", "8"]
    assert images.rows[0]["peak / that of the fewest"] == 1
    assert [row["sites"] for row in sites.rows] == [1, 3] and width.rows[0]["sites"] == 12
    assert "time / bare" in sites.head and "peak / bare" in width.head


def test_sections_are_stored_and_written_between_their_marks(speed, tmp_path, monkeypatch):
    import evaluation

    results = tmp_path / "RESULTS.md"
    results.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    monkeypatch.setattr(evaluation, "RESULTS", results)
    monkeypatch.setattr(speed.run, "end_to_end", lambda model, batch: speed.end_to_end.end_to_end(model, batch, 20))
    speed.run.main(out=tmp_path, models=speed.peers.TINY, batch=2, rounds=1, only="end-to-end", write=True)
    (block,) = json.loads((tmp_path / "end-to-end.json").read_text())
    assert [row["end-to-end / model only"] > 0 for row in block["rows"]] == [True, True]
    text = results.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "end-to-end / model only" in text and "10% of them" in text


def test_photographs_compress_like_photographs(speed):
    picture = speed.end_to_end.photograph((200, 150), 0)
    pixels = np.asarray(picture, dtype=float)
    neighbours = np.corrcoef(pixels[:, :-1, 0].ravel(), pixels[:, 1:, 0].ravel())[0, 1]
    assert picture.size == (200, 150) and picture.mode == "RGB"
    assert pixels.std() > 10 and 0.9 < neighbours < 1
