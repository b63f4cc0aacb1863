"""``dna-probe cache`` says what is kept, what of it is damaged, and what it removed."""

import json
import os
import time

import numpy as np
import pytest

from dna_probe.cache import RowCache
from dna_probe.cli import main

ABOUT = {
    "backbone": "nano",
    "weight_hash": "0123456789abcdef",
    "preprocessing": {"input_size": [128, 128], "interpolation": "bicubic"},
}


@pytest.fixture
def folder(tmp_path):
    """Three images of nano in two shards, used now, and one of something unknown, used 40 days ago."""
    nano, unknown = RowCache(tmp_path, "ab" * 32, ABOUT), RowCache(tmp_path, "cd" * 32)
    nano.add(["1", "2"], {"blocks.0.hook_resid_post": np.ones((2, 500)), "blocks.1.hook_resid_post": np.ones((2, 5))})
    nano.add(["3"], {"blocks.0.hook_resid_post": np.ones((1, 500))})
    unknown.add(["1"], {"stages.0.hook_out": np.ones((1, 500))})
    os.utime(unknown.folder, (time.time() - 40 * 86400,) * 2)
    return tmp_path


@pytest.fixture
def run(capsys, folder):
    def run(*arguments, cache=folder):
        place = [] if cache is None else ["--cache", str(cache)]
        status = main(["cache", *map(str, arguments), *place])
        return status, *capsys.readouterr()

    return run


def said(text: str) -> dict:
    return json.loads(text)


class TestList:
    def test_table(self, run, folder):
        status, text, _ = run("list")
        assert status == 0 and f"{folder.name}: 16.6 kB" in text.replace("\n", "")
        lines = [line.split() for line in text.splitlines() if " kB " in line and str(folder) not in line]
        assert [line[0] for line in lines] == ["nano", "unknown"]
        assert lines[0][1:6] == ["0123456789ab", "128", "x", "128", "bicubic"] and lines[0][6:9] == ["3", "2", "12.4"]

    def test_json(self, run):
        status, text, _ = run("list", "--json")
        found = said(text)
        assert status == 0 and found["schema"] == "dna_probe.cache_list/1"
        nano, unknown = found["folders"]
        assert (nano["backbone"], nano["images"], nano["readings"], nano["shards"]) == ("nano", 3, 2, 2)
        assert nano["preprocessing"] == ABOUT["preprocessing"] and nano["folder"] == "ab" * 16
        assert (unknown["backbone"], unknown["weight_hash"], unknown["images"]) == ("unknown", None, 1)
        assert unknown["last_use"].endswith("+00:00") and unknown["last_use"] < nano["last_use"]
        assert found["bytes"] == nano["bytes"] + unknown["bytes"]

    def test_an_empty_cache(self, run, tmp_path_factory):
        status, text, _ = run("list", "--json", cache=tmp_path_factory.mktemp("empty"))
        assert status == 0 and said(text)["folders"] == [] and said(text)["bytes"] == 0


class TestVerify:
    def test_all_sound(self, run):
        assert run("verify")[:2] == (0, "shards: 3, damaged: 0\n")

    def test_damaged_shards_are_named_and_end_with_status_3(self, run, folder):
        shard = sorted(folder.rglob("*.safetensors"))[1]
        content = bytearray(shard.read_bytes())
        content[-9] ^= 4
        shard.write_bytes(content)
        status, text, _ = run("verify")
        assert status == 3 and "shards: 3, damaged: 1" in text and f"{shard}: its SHA-256 is not" in text
        status, text, _ = run("verify", "--json")
        assert status == 3 and [one["path"] for one in said(text)["damaged"]] == [str(shard)]
        status, text, _ = run("prune", "--damaged")
        assert status == 0 and "files removed: 1," in text and not shard.exists()
        assert run("verify")[0] == 0


class TestPrune:
    def test_nothing_asked_nothing_removed(self, run):
        assert run("prune")[:2] == (0, "files removed: 0, 0 bytes\n")

    def test_by_age(self, run, folder):
        status, text, _ = run("prune", "--older-than", "30d", "--dry-run")
        assert status == 0 and "files to remove: 1, 4.1 kB" in text
        assert (folder / ("cd" * 16)).exists()
        assert "files removed: 1, 4.1 kB" in run("prune", "--older-than", "30d")[1]
        assert sorted(path.name for path in folder.iterdir()) == ["ab" * 16]

    @pytest.mark.parametrize("size", ["5GB", "1.5 mb"])
    def test_by_size_with_room_left(self, run, size):
        assert run("prune", "--larger-than", size)[1].startswith("files removed: 0,")

    def test_by_size(self, run, folder):
        status, text, _ = run("prune", "--larger-than", "13kB", "--json")
        found = said(text)
        assert status == 0 and found["schema"] == "dna_probe.cache_prune/1" and not found["dry_run"]
        (removed,) = found["removed"]
        assert "cd" * 16 in removed["path"] and removed["reason"] == "least recently used" and found["bytes"] > 4000

    def test_by_backbone(self, run, folder):
        assert "files removed: 2," in run("prune", "--backbone", "nano")[1]
        assert sorted(path.name for path in folder.iterdir()) == ["cd" * 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("prune", "--older-than", "soon"),
            "--older-than 'soon' is not understood. It takes a number and one of h, d, w",
        ),
        (("prune", "--larger-than", "5 apples"), "one of B, KB, MB, GB, TB. Write 5GB, for example"),
        (("prune", "--backbone", "nanno"), "Unknown backbone in this cache 'nanno'. Did you mean 'nano'?"),
    ],
)
def test_mistakes_end_with_status_2(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2 and err.startswith("dna-probe: ") and message in err


def test_no_cache_named_and_none_there(run, tmp_path):
    for command in ("list", "verify", "prune"):
        status, _, err = run(command, cache=None)
        assert status == 2 and "No cache was named" in err and "Give the same --cache" in err
        status, _, err = run(command, cache=tmp_path / "nowhere")
        assert status == 2 and "There is no cache in" in err
