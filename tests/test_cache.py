"""The feature cache outlives whatever happens to it, and never gives back what was not put in."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dna_probe import cache as module
from dna_probe import engines
from dna_probe.backbones import open_backbone
from dna_probe.cache import CacheWarning, RowCache, list_cache, prune_cache, verify_cache
from dna_probe.cli import main
from dna_probe.collection import Options, collect_features, open_cache
from dna_probe.errors import DataError
from dna_probe.gradients import _GradientSums, collect_gradients
from dna_probe.images.layouts import read_images
from dna_probe.scoring import reference_head
from dna_probe.sites import Reading

from .planted import Planted, images

KEY = "ab" * 32
NAMES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post:mean")
ABOUT = {"backbone": "nano", "weight_hash": "c0ffee", "preprocessing": {"input_size": [32, 32]}}


def values_of(image: str) -> dict[str, np.ndarray]:
    """What the cache must say of an image called by a number."""
    return {name: np.full(40, int(image) + offset / 4, np.float32) for offset, name in enumerate(NAMES)}


def put(cache: RowCache, *images: object) -> None:
    names = [str(image) for image in images]
    rows = [values_of(name) for name in names]
    cache.add(names, {name: np.stack([row[name] for row in rows]) for name in NAMES})


def require_right(cache: RowCache, images) -> None:
    images = [str(image) for image in images]
    assert all(cache.has(image, NAMES) for image in images)
    for name, values in cache.rows(images, NAMES).items():
        assert np.array_equal(values, np.stack([values_of(image)[name] for image in images]))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


# Without this file's imports, which take seconds.
WRITER = """
import sys
import numpy as np
from dna_probe.cache import RowCache
folder, key, start, stop, *names = sys.argv[1:]
cache = RowCache(folder, key)
for first in range(int(start), int(stop), 3):
    images = [str(image) for image in range(first, min(first + 3, int(stop)))]
    rows = {n: [np.full(40, int(i) + k / 4, np.float32) for i in images] for k, n in enumerate(names)}
    cache.add(images, {n: np.stack(row) for n, row in rows.items()})
    print(first, flush=True)
"""


def start_writer(folder: Path, start: int, stop: int) -> subprocess.Popen:
    """A process that puts these images into the cache by threes, and prints a line after each."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", WRITER, str(folder), KEY, str(start), str(stop), *NAMES]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE)


def cut_off(after: int, place: tuple[Any, str], run: Callable[[], object]) -> None:
    """Run in a copy of this process that kills itself when it has called the function at the place so often.

    A copy has no threads, and would wait for ever for those of torch.
    """
    assert torch.get_num_threads() == 1
    owner, name = place
    original, calls = getattr(owner, name), []

    def call(*arguments: Any) -> object:
        result = original(*arguments)
        calls.append(result)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    child = os.fork()
    if child == 0:
        signal.alarm(300)
        try:
            setattr(owner, name, call)
            run()
        finally:
            # Not killed: whatever happened, nothing of pytest may go on here.
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestRows:
    def test_rows_come_in_the_order_asked_for_from_several_shards(self, tmp_path):
        cache = RowCache(tmp_path, KEY)
        put(cache, 1, 2, 3)
        put(cache, 4, 5)
        cache.add(["1", "5"], {"more": np.array([[1.0], [5.0]])})
        require_right(cache, [5, 1, 4, 1])
        require_right(RowCache(tmp_path, KEY), [3, 5])
        assert cache.rows(["5", "1"], ["more", NAMES[0]])["more"].tolist() == [[5.0], [1.0]]
        assert not cache.has("2", ["more"]) and not cache.has("6", NAMES)
        with pytest.raises(KeyError):
            cache.rows(["2"], ["more"])

    def test_the_same_rows_are_written_once(self, tmp_path):
        for _ in range(2):
            put(RowCache(tmp_path, KEY), 1, 2)
        assert len(shards(tmp_path)) == 1

    def test_of_several_answers_that_to_the_same_question_counts_and_else_the_first(self, tmp_path):
        cache = RowCache(tmp_path, KEY)
        for value, names in enumerate(("bc", "ab", "a", "abc")):
            cache.add(["1"], {name: np.array([[float(value)]]) for name in names})
            time.sleep(0.01)
        for one in (cache, RowCache(tmp_path, KEY)):
            assert [one.rows(["1"], [name])[name].item() for name in "abc"] == [2, 0, 0]
            assert [values.item() for values in one.rows(["1"], "ab").values()] == [1, 1]
            assert [values.item() for values in one.rows(["1"], "ac").values()] == [1, 0]

    def test_what_another_process_wrote_is_found_when_it_is_opened_again(self, tmp_path):
        first = RowCache.open(tmp_path, KEY)
        put(RowCache(tmp_path, KEY), 7)
        assert not first.has("7", NAMES)
        assert RowCache.open(tmp_path, KEY) is first
        require_right(first, [7])

    def test_shards_from_before_there_was_a_checksum_are_read(self, tmp_path):
        put(RowCache(tmp_path, KEY), 1)
        (shard,) = shards(tmp_path)
        shard.rename(shard.with_name(f"{'e' * 32}.safetensors"))
        require_right(RowCache(tmp_path, KEY), [1])

    def test_a_shard_removed_in_use_is_an_error_that_says_what_to_do(self, tmp_path):
        cache = RowCache(tmp_path, KEY)
        put(cache, 1)
        shards(tmp_path)[0].unlink()
        with pytest.raises(DataError, match=r"was removed or changed while it was in use.*Run again"):
            cache.rows(["1"], NAMES)
        cache.refresh()
        assert not cache.has("1", NAMES)

    def test_a_folder_that_cannot_be_made_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match=r"cache folder .* cannot be written.*Give another --cache"):
            RowCache(tmp_path / "file", KEY)


class TestDamage:
    def test_no_flipped_bit_gets_through_and_the_file_is_named(self, tmp_path):
        put(RowCache(tmp_path, KEY), 1, 2)
        (shard,) = shards(tmp_path)
        content, named = shard.read_bytes(), 0
        offsets = range(0, len(content), 29)
        for offset in offsets:
            flip(shard, offset)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                cache = RowCache(tmp_path, KEY)
                # Whatever images the header now speaks of, none of them is given out.
                assert not any(cache.has(image, NAMES) for image in ("1", "2", *cache._places))
            # Nothing is said where the header seems to hold no image, so that nobody wanted it.
            assert len(told) <= 1 and all(f"{shard.name} is damaged" in str(one.message) for one in told)
            named += len(told)
            assert [fault.path for fault in verify_cache(tmp_path)[1]] == [shard]
            shard.write_bytes(content)
        assert named > 0.8 * len(offsets)
        require_right(RowCache(tmp_path, KEY), [1, 2])

    def test_rows_of_a_damaged_shard_are_computed_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, "SHARD", 4)
        backbone = open_backbone(Planted())
        data = read_images(images(8))
        readings = [Reading(site, "cls") for site in backbone.layers]
        options = Options(cache=tmp_path, batch_size=4)
        first = collect_features(backbone, data, readings, options=options)
        damaged = shards(tmp_path)[1]
        flip(damaged, -5)
        with pytest.warns(CacheWarning, match=damaged.name):
            second = collect_features(backbone, data, readings, options=options)
        assert all(np.array_equal(second.values[name], first.values[name]) for name in first.values)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The damaged one was written anew under its name.
            collect_features(backbone, data, readings, options=options)
        assert verify_cache(tmp_path) == (4, [])

    def test_a_shard_is_checked_once(self, tmp_path, monkeypatch):
        put(RowCache(tmp_path, KEY), 1, 2)
        read = []
        monkeypatch.setattr(module, "_fault", lambda path: read.append(path) or "")
        cache = RowCache(tmp_path, KEY)
        for _ in range(3):
            require_right(cache, [1, 2])
            cache.refresh()
        assert read == shards(tmp_path)


class TestFullDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        def write(path, content):
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", write)

    def test_the_run_goes_on_after_one_warning_and_keeps_what_was_there(self, tmp_path, request):
        cache = RowCache(tmp_path, KEY)
        put(cache, 1, 2)
        before = shards(tmp_path)
        request.getfixturevalue("full")
        with pytest.warns(CacheWarning) as told:
            put(cache, 3)
            put(cache, 4)
        assert len(told) == 1 and "No space left on device): the run goes on" in str(told[0].message)
        assert shards(tmp_path) == before and len(list(cache.folder.iterdir())) == 1
        require_right(cache, [2, 1])
        assert not cache.has("3", NAMES)

    def test_features_are_those_without_a_cache(self, tmp_path, full):
        backbone, data = open_backbone(Planted()), read_images(images(4))
        readings = [Reading(backbone.layers[-1], "cls")]
        with pytest.warns(CacheWarning):
            found = collect_features(backbone, data, readings, options=Options(cache=tmp_path))
        plain = collect_features(backbone, data, readings)
        assert np.array_equal(found.of(readings), plain.of(readings))

    def test_a_command_says_it_in_a_line(self, tmp_path, ten_pictures, full, capsys):
        assert main(["locate", str(ten_pictures), "--cache", str(tmp_path), "--quiet"]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert line.startswith("dna-probe: The cache ") and "No space left on device" in line


class TestProcesses:
    def test_a_writer_killed_at_any_moment_leaves_whole_shards(self, tmp_path):
        rng = np.random.default_rng(0)
        for start in range(0, 5000, 1000):
            writer = start_writer(tmp_path, start, start + 1000)
            for _ in range(rng.integers(1, 9)):
                writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.01))
            writer.kill()
            writer.communicate()
            assert writer.returncode == -signal.SIGKILL
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                cache = RowCache(tmp_path, KEY)
                require_right(cache, cache._places)
        assert verify_cache(tmp_path) == (len(shards(tmp_path)), [])
        assert len(shards(tmp_path)) >= 5

    def test_two_writers_of_the_same_images_end_with_one_copy(self, tmp_path):
        writers = [start_writer(tmp_path, 0, 60) for _ in range(2)]
        for writer in writers:
            writer.communicate()
            assert writer.returncode == 0
        require_right(RowCache(tmp_path, KEY), range(60))
        assert len(list((tmp_path / KEY[:32]).iterdir())) == 20

    def test_what_was_left_half_written_goes_when_it_is_old(self, tmp_path):
        cache = RowCache(tmp_path, KEY)
        put(cache, 1)
        young, old = (cache.folder / f".{'f' * 64}.safetensors.{tail}" for tail in ("0123abcd", "4567abcd"))
        for partial in (young, old):
            partial.write_bytes(b"half")
        os.utime(old, (0, 0))
        assert [path for path, _ in prune_cache(tmp_path, dry_run=True).removed] == [old] and old.exists()
        assert prune_cache(tmp_path).size == 4
        assert young.exists() and not old.exists()
        os.utime(young, (0, 0))
        RowCache(tmp_path, KEY)
        assert not young.exists()
        require_right(RowCache(tmp_path, KEY), [1])


@pytest.fixture
def two(tmp_path):
    """A cache of two backbones, nano used a minute ago and another 40 days ago; each has 3 shards."""
    for key, about, ago in ((KEY, ABOUT, 60), ("cd" * 32, ABOUT | {"backbone": "other"}, 40 * 86400)):
        cache = RowCache(tmp_path, key, about)
        for number in range(3):
            put(cache, number, number + 1)
            os.utime(shards(cache.folder)[-1])
        os.utime(cache.folder, (time.time() - ago,) * 2)
    return tmp_path


class TestUpkeep:
    def test_list_says_what_is_kept(self, two):
        put(RowCache(two, "ef" * 32), 9)
        (two / "not-a-key").mkdir()
        unknown, nano, other = list_cache(two)
        assert [found.backbone for found in (unknown, nano, other)] == ["unknown", "nano", "other"]
        assert (nano.images, nano.readings, len(nano.shards)) == (4, 2, 3)
        assert nano.about == ABOUT and nano.size == sum(path.stat().st_size for path in nano.shards)
        assert time.time() - other.last_use == pytest.approx(40 * 86400, abs=100)

    def test_looking_is_no_use_and_opening_is(self, two):
        list_cache(two)
        verify_cache(two)
        assert time.time() - list_cache(two)[1].last_use > 39 * 86400
        RowCache.open(two, "cd" * 32)
        assert list_cache(two)[0].backbone == "other" and time.time() - list_cache(two)[0].last_use < 60

    def test_verify_names_damaged_shards(self, two):
        damaged, cut = shards(two)[1], shards(two)[4]
        flip(damaged, -1)
        cut.write_bytes(cut.read_bytes()[:100])
        count, faults = verify_cache(two)
        assert count == 6 and [fault.path for fault in faults] == [damaged, cut]
        assert faults[0].reason == "its SHA-256 is not the one in its name"
        assert {path for path, _ in prune_cache(two, damaged=True).removed} == {damaged, cut}
        assert verify_cache(two) == (4, [])

    def test_prune_by_last_use(self, two):
        pruned = prune_cache(two, older_than=30 * 86400)
        assert len(pruned.removed) == 3 and [found.backbone for found in list_cache(two)] == ["nano"]
        assert not (two / ("cd" * 16)).exists()

    def test_prune_by_size_takes_the_least_recently_used(self, two):
        one = shards(two)[0].stat().st_size
        oldest = list_cache(two)[1].shards
        pruned = prune_cache(two, larger_than=4 * one)
        assert [path for path, _ in pruned.removed] == list(oldest[:2]) and pruned.size == 2 * one
        assert list_cache(two)[1].shards == oldest[2:]
        assert prune_cache(two, larger_than=4 * one).removed == ()

    def test_prune_by_backbone_alone_takes_all_of_it_and_else_narrows(self, two):
        assert prune_cache(two, backbone="nano", older_than=30 * 86400).removed == ()
        assert len(prune_cache(two, backbone="nano", dry_run=True).removed) == 3
        assert len(list_cache(two)) == 2
        prune_cache(two, backbone="nano")
        assert [found.backbone for found in list_cache(two)] == ["other"]
        with pytest.raises(DataError, match=r"Unknown backbone in this cache 'othr'. Did you mean 'other'"):
            prune_cache(two, backbone="othr")

    def test_nothing_else_is_ever_removed(self, two):
        theirs = [two / "weights.safetensors", two / ("a" * 33) / "x.safetensors", two / KEY[:32] / "notes.txt"]
        for path in theirs:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        prune_cache(two, older_than=0, larger_than=0, damaged=True)
        assert all(path.read_text() == "mine" for path in theirs) and not list(two.glob("[0-9a-f]*/*.safetensors"))[1:]

    def test_a_cache_pruned_beside_a_run_is_filled_again(self, two):
        cache = RowCache.open(two, KEY, ABOUT)
        prune_cache(two, larger_than=0)
        assert not cache.folder.exists()
        put(cache, 5)
        require_right(RowCache.open(two, KEY, ABOUT), [5])
        assert list_cache(two)[0].backbone == "nano"

    def test_another_process_prunes_the_same(self, two, monkeypatch):
        def gone(paths):
            paths = list(paths)
            shutil.rmtree(two / KEY[:32])
            remove(paths)

        remove = module._remove
        monkeypatch.setattr(module, "_remove", gone)
        assert len(prune_cache(two, larger_than=0).removed) == 6 and not list_cache(two)

    def test_a_folder_of_somebody_else(self, two, monkeypatch):
        old = two / KEY[:32] / f".{'f' * 64}.safetensors.0123abcd"
        old.write_bytes(b"half")
        os.utime(old, (0, 0))

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(DataError, match=r"Nothing can be removed from .*Permission denied"):
            prune_cache(two, larger_than=0)
        require_right(RowCache(two, KEY), [1])

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"There is no cache in .*Give the folder"):
            list_cache(tmp_path / "nowhere")


class TestKeys:
    """What a row depends on is part of the key that it is found by."""

    class Headed(torch.nn.Module):
        def __init__(self, heads: int):
            super().__init__()
            torch.manual_seed(0)
            self.model, self.num_heads = Planted(), heads
            self.pretrained_cfg = Planted.pretrained_cfg

        def forward(self, x):
            return self.model(x) * self.num_heads

    def test_equal_weights_in_another_model(self, tmp_path):
        keys = set()
        for heads in (1, 2, 2):
            backbone = open_backbone(self.Headed(heads))
            keys.add(open_cache(backbone, Options(cache=tmp_path)).folder)
        assert len(keys) == 2

    def test_switches_do_not_count(self):
        backbone = open_backbone("vit_tiny_patch16_224", random_weights=True)
        before = backbone.structure
        for block in backbone.module.blocks:
            block.attn.fused_attn = not block.attn.fused_attn
        backbone.module.train()
        assert backbone.structure == before

    def test_how_it_is_run(self, tmp_path):
        backbone = open_backbone(Planted())
        ways = ({}, {"precision": "bfloat16"}, {"compile": True}, {"batch_size": 3})
        folders = [open_cache(backbone, Options(cache=tmp_path, **how)).folder for how in ways]
        assert len(set(folders)) == 3 and folders[0] == folders[3]
        assert {found.about["precision"] for found in list_cache(tmp_path)} == {"float32", "bfloat16"}


def test_features_of_a_gradient_pass_that_was_cut_off_are_kept(tmp_path, monkeypatch):
    backbone, data = open_backbone(Planted()), read_images(images(4))
    readings = [Reading(backbone.layers[-1], "cls")]
    head = reference_head(collect_features(backbone, data, readings), readings[0], 0)
    monkeypatch.setattr(engines, "SHARD", 2)
    options, seen = Options(cache=tmp_path, batch_size=2, workers=0), []
    merge = _GradientSums.merge

    def interrupt(self, other):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        merge(self, other)

    monkeypatch.setattr(_GradientSums, "merge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect_gradients(backbone, data, readings, head, options)
    assert list_cache(tmp_path)[0].images == 6


@pytest.fixture(scope="module")
def ten_pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(10):
        path = root / ("real" if number % 2 else "fake/gen") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for runs in several shards and one thread: a fork has no more, and their number decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "SHARD", 4)
        yield tmp_path_factory.mktemp("runs")
    torch.set_num_threads(before)


def command(runs: Path, name: str, cache: str, *arguments: object) -> Callable[[str], int]:
    """A command line that writes into the folder it is then called with."""
    how = ["--cache", runs / cache, "--quiet", "--batch-size", "2", "--workers", "0"]
    return lambda out: main([*map(str, (name, *arguments, *how, "--out", runs / out))])


@pytest.fixture(scope="module")
def fitted(runs, ten_pictures):
    assert command(runs, "fit", "whole-cache", ten_pictures, "--backbone", "nano")("fit") == 0
    return runs / "fit"


class TestRunsCutOff:
    """A run killed somewhere and started again ends with the bytes of one that was not."""

    def require_same(self, runs: Path, whole: Path, kills: tuple[int, ...], run: Callable[[str], int]) -> None:
        cut = f"{whole.name}-cut"
        for after in kills:
            cut_off(after, (RowCache, "add"), lambda: run(cut))
            assert not (runs / cut).exists()
        assert run(cut) == 0
        assert contents(runs / cut) == contents(whole)

    def test_fit(self, runs, fitted, ten_pictures):
        run = command(runs, "fit", "fit-cache", ten_pictures, "--backbone", "nano")
        self.require_same(runs, fitted, (5,), run)
        # And once more, with all of it in the cache.
        assert run("again") == 0
        assert contents(runs / "again") == contents(fitted)

    def test_evaluate(self, runs, fitted, ten_pictures):
        assert command(runs, "evaluate", "first-cache", fitted, ten_pictures)("evaluate") == 0
        run = command(runs, "evaluate", "evaluate-cache", fitted, ten_pictures)
        self.require_same(runs, runs / "evaluate", (1,), run)

    def test_benchmark(self, runs, ten_pictures):
        few = ("--backbone", "nano", "--shots", "2", "--draws", "1", "--methods", "dna,last-linear", "--jobs", "1")
        assert command(runs, "benchmark", "second-cache", ten_pictures, *few)("benchmark") == 0
        run = command(runs, "benchmark", "benchmark-cache", ten_pictures, *few)
        self.require_same(runs, runs / "benchmark", (4,), run)
