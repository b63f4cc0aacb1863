"""Raw activations are what the sites gave, whatever happened while they were written."""

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dna_probe import activation_shards as module
from dna_probe.activation_shards import collect_activations, estimate_size
from dna_probe.activations import open_activations
from dna_probe.backbones import open_backbone
from dna_probe.cli import main
from dna_probe.collection import NoReadableImage, Options
from dna_probe.errors import ArtefactError, DataError, NumericalError, SiteError
from dna_probe.images.sets import ImageSet
from dna_probe.samples import read_samples
from dna_probe.texts.preprocessing import TextPreprocessing

from . import tiny_language as tiny
from .planted import DEPTH, SIDE, WIDTH, Planted
from .test_cache import contents, cut_off, flip

RESIDUALS = "blocks.*.hook_resid_post"
TOKENS = 17
OPTIONS = Options(batch_size=2, workers=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A run that is killed is a fork, which has no more; and their number decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone():
    return open_backbone(Planted())


@pytest.fixture
def images(tmp_path) -> ImageSet:
    """Seven images of two classes; the third is no image."""
    rng, paths = np.random.default_rng(0), []
    for number in range(7):
        path = tmp_path / "data" / ("fake/board" if number % 2 else "real") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    paths[2].write_bytes(b"no image")
    labels = np.arange(7) % 2
    return ImageSet(tuple(paths), labels, tuple("board" if label else "real" for label in labels))


def collect(backbone, images, out, **settings):
    settings = {"sites": RESIDUALS, "shard_size": 3, "options": OPTIONS} | settings
    return collect_activations(backbone, images, out=out, **settings)


class TestWhatIsStored:
    def test_every_token_of_every_site(self, backbone, images, tmp_path):
        found = collect(backbone, images, tmp_path / "out")
        readable = [i for i in range(7) if i != 2]
        assert found.names == tuple(str(images.images[i]) for i in readable) and len(found) == 6
        assert found.labels.tolist() == [i % 2 for i in readable]
        assert found.sites == {f"blocks.{layer}.hook_resid_post": (TOKENS, WIDTH) for layer in range(DEPTH)}
        pixels = np.stack([backbone.preprocessing.load(images.images[i], "") for i in readable])
        for site, expected in backbone.capture(pixels, found.sites).items():
            torch.testing.assert_close(torch.cat(list(found.of(site))), expected)
            torch.testing.assert_close(found[found.names[4]][site], expected[4])
        assert [len(part) for part in found.of("blocks.0.hook_resid_post")] == [2, 3, 1]
        assert found.skipped[0][0] == str(images.images[2]) and "not an image" in found.skipped[0][1]

    def test_the_manifest_says_where_it_came_from(self, backbone, images, tmp_path):
        collect(backbone, images, tmp_path / "out")
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["schema"] == "dna_probe.activations/1" and manifest["data"] == images.fingerprint()
        assert manifest["backbone"]["weight_hash"] == backbone.weight_hash
        assert manifest["preprocessing"] == backbone.preprocessing.to_json()
        shard = manifest["shards"][1]
        assert shard["file"] == "shard-00001.safetensors" and shard["blocks"] == [3]
        assert set(shard["images"][0]) == {"name", "sha256", "label", "generator"}
        assert sorted(contents(tmp_path / "out")) == ["manifest.json", *(s["file"] for s in manifest["shards"])]
        assert not list(tmp_path.glob(".*"))

    def test_opened_again_it_is_the_same(self, backbone, images, tmp_path):
        made = collect(backbone, images, tmp_path / "out")
        again = open_activations(tmp_path / "out")
        assert repr(again) == repr(made) and "6 images at 6 sites of Planted, float32" in repr(made)
        assert again.table()["shard"].tolist() == [f"shard-0000{n}.safetensors" for n in (0, 0, 1, 1, 1, 2)]
        assert again.to_json() == made.to_json()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision(self, backbone, images, tmp_path, dtype):
        full = collect(backbone, images, tmp_path / "full")
        half = collect(backbone, images, tmp_path / "half", dtype=dtype)
        for one, other in zip(full.of("blocks.3.hook_resid_post"), half.of("blocks.3.hook_resid_post"), strict=True):
            assert torch.equal(one.to(getattr(torch, dtype)), other)
        assert half.size < 0.6 * full.size

    def test_how_it_is_cut_changes_nothing(self, backbone, images, tmp_path):
        parts = collect(backbone, images, tmp_path / "parts", shard_size=1)
        whole = collect(backbone, images, tmp_path / "whole", shard_size=None)
        assert len(whole.manifest["shards"]) == 1 and len(parts.manifest["shards"]) == 6
        site = "blocks.5.hook_resid_post"
        torch.testing.assert_close(torch.cat(list(parts.of(site))), torch.cat(list(whole.of(site))))

    def test_texts_keep_their_lengths(self, tmp_path):
        bert = open_backbone(tiny.bert(), preprocessing=TextPreprocessing(tiny.tokeniser()))
        texts = read_samples(tiny.texts(5))
        sites = ["blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"]
        found = collect(bert, texts, tmp_path / "out", sites=sites, shard_size=4)
        assert found.sites[sites[0]][0] is None and "10 texts" in repr(found)
        rows = [row for part in found.of(sites[0]) for row in part]
        for position, name in enumerate(found.names):
            tokens = bert.preprocessing.load(texts.images[position], name)
            expected = bert.capture(tokens[None], sites)
            torch.testing.assert_close(rows[position], expected[sites[0]][0])
            for site in sites:
                torch.testing.assert_close(found[name][site], expected[site][0])
        assert estimate_size(bert, texts, sites) == pytest.approx(found.size, rel=0.5)


class TestSitesAndErrors:
    def test_globs_in_the_order_of_the_network(self, backbone):
        found = module.match_sites(backbone, ["blocks.3.hook_*", "blocks.[01].hook_resid_post"])
        assert found == [f"blocks.{layer}.hook_resid_post" for layer in (0, 1, 3)]

    @pytest.mark.parametrize("sites", ["blocks.3.hook_resid_pst", ["blocks.0.*", "stages.*"]])
    def test_a_pattern_that_matches_nothing(self, backbone, images, tmp_path, sites):
        with pytest.raises(SiteError, match=r"Unknown site '(blocks.3.hook_resid_pst'. Did you mean|stages)"):
            collect(backbone, images, tmp_path / "out", sites=sites)

    def test_no_sites_and_unknown_names(self, backbone, images, tmp_path):
        with pytest.raises(SiteError, match="No sites were asked for"):
            collect(backbone, images, tmp_path / "out", sites=[])
        with pytest.raises(DataError, match=r"Unknown type 'float61'. Did you mean .*'float16'"):
            collect(backbone, images, tmp_path / "out", dtype="float61")
        with pytest.raises(DataError, match="A shard cannot hold 0 images"):
            collect(backbone, images, tmp_path / "out", shard_size=0)
        found = collect(backbone, images, tmp_path / "out")
        with pytest.raises(SiteError, match=r"Unknown site in these activations 'blocks\.9"):
            next(found.of("blocks.9.hook_resid_post"))
        with pytest.raises(DataError, match="Unknown image in these activations"):
            found["x.png"]
        with pytest.raises(ArtefactError, match="is not empty"):
            collect(backbone, images, tmp_path / "out")

    def test_nothing_readable(self, backbone, images, tmp_path):
        with pytest.raises(NoReadableImage, match="None of the 1 images"):
            collect(backbone, images.subset([2]), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_numbers_that_do_not_fit(self, backbone, images, tmp_path):
        loud = Planted()
        with torch.no_grad():
            loud.embed.weight *= 1e6
        with pytest.raises(DataError, match=r"gives values up to .*do not fit float16.*Use bfloat16"):
            collect(open_backbone(loud), images, tmp_path / "out", dtype="float16")
        with torch.no_grad():
            loud.embed.weight[0] = float("nan")
        with pytest.raises(NumericalError, match=r"NaN or infinite"):
            collect(open_backbone(loud), images, tmp_path / "out")
        assert not list(tmp_path.glob(".*"))

    def test_damage_is_found_at_the_first_look(self, backbone, images, tmp_path):
        collect(backbone, images, tmp_path / "out")
        flip(tmp_path / "out" / "shard-00001.safetensors", -3)
        found = open_activations(tmp_path / "out")
        parts = found.of("blocks.0.hook_resid_post")
        next(parts)
        with pytest.raises(ArtefactError, match=r"shard-00001.safetensors is damaged or missing"):
            next(parts)

    def test_a_folder_that_holds_none(self, tmp_path):
        with pytest.raises(ArtefactError, match=r"There are no activations in .*Give the folder that 'collect' wrote"):
            open_activations(tmp_path)
        for text, said in (
            ("{", "damaged"),
            ("{}", "another schema"),
            ('{"schema": "dna_probe.activations/9"}', "new"),
        ):
            (tmp_path / "manifest.json").write_text(text)
            with pytest.raises(ArtefactError, match=said):
                open_activations(tmp_path)


class TestDisk:
    def test_it_is_said_beforehand_and_right(self, backbone, images, tmp_path):
        told = []
        needed = estimate_size(backbone, images, list(module.match_sites(backbone, RESIDUALS)))
        assert needed == 7 * DEPTH * TOKENS * WIDTH * 4
        collect(backbone, images, tmp_path / "out", say=told.append)
        assert len(told) == 1 and told[0].startswith("Activations will take 137.1 kB; the disk has ")

    def test_less_than_that_is_refused(self, backbone, images, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 100_000))
        with pytest.raises(DataError, match=r"need 137.1 kB. The disk of .* has 100.0 kB left. Name fewer sites"):
            collect(backbone, images, tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))

    def test_a_disk_that_runs_full_keeps_what_was_written(self, backbone, images, tmp_path):
        whole = collect(backbone, images, tmp_path / "whole")
        write = Path.write_bytes

        def run_full(path, content):
            if "shard-00002" in path.name:
                write(path, content[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, content)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "write_bytes", run_full)
            with pytest.raises(DataError, match="No space left on device"):
                collect(backbone, images, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(ArtefactError, match=r"was cut off. Start it again"):
            open_activations(tmp_path / "out")
        told = []
        again = collect(backbone, images, tmp_path / "out", say=told.append)
        assert "beside" in told[0] and contents(again.folder) == contents(whole.folder)


class TestProcesses:
    def test_killed_anywhere_and_started_again_it_ends_with_the_same_bytes(self, backbone, images, tmp_path):
        whole = collect(backbone, images, tmp_path / "whole")
        out = tmp_path / "out"
        # Behind a shard and before its note, behind the first note, behind the manifest, and while it is tidied up.
        for after, place in (
            (1, (module, "write_atomically")),
            (2, (module, "write_atomically")),
            (3, (module, "write_atomically")),
            (1, (module, "_write_manifest")),
            (1, (Path, "unlink")),
        ):
            cut_off(after, place, lambda: collect(backbone, images, out))
            assert not out.exists()
        again = collect(backbone, images, out)
        assert contents(again.folder) == contents(whole.folder)
        assert not list(tmp_path.glob(".*"))

    def test_whole_shards_are_not_computed_again(self, backbone, images, tmp_path):
        out, runs = tmp_path / "out", []
        handle = backbone.module.embed.register_forward_hook(lambda *_: runs.append(1))
        try:
            collect(backbone, images, tmp_path / "whole")
            all_runs = len(runs)
            cut_off(4, (module, "write_atomically"), lambda: collect(backbone, images, out))
            runs.clear()
            collect(backbone, images, out)
        finally:
            handle.remove()
        # Of four batches in three shards one is left; another pass is that of the estimate.
        assert all_runs == 5 and len(runs) == 2

    def test_a_shard_damaged_meanwhile_is_computed_again(self, backbone, images, tmp_path):
        whole = collect(backbone, images, tmp_path / "whole")
        cut_off(4, (module, "write_atomically"), lambda: collect(backbone, images, tmp_path / "out"))
        (partial,) = tmp_path.glob(".out.*.partial")
        flip(partial / "shard-00000.safetensors", -1)
        assert contents(collect(backbone, images, tmp_path / "out").folder) == contents(whole.folder)

    def test_other_settings_do_not_take_up_an_unfinished_run(self, backbone, images, tmp_path):
        cut_off(4, (module, "write_atomically"), lambda: collect(backbone, images, tmp_path / "out"))
        found = collect(backbone, images, tmp_path / "out", dtype="float16")
        assert {part.dtype for part in found.of("blocks.0.hook_resid_post")} == {torch.float16}

    def test_two_at_once(self, backbone, images, tmp_path):
        cut_off(4, (module, "write_atomically"), lambda: collect(backbone, images, tmp_path / "out"))
        (partial,) = tmp_path.glob(".out.*.partial")
        other = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(DataError, match=r"Another process is writing .*out.* Wait for it"):
                collect(backbone, images, tmp_path / "out")
            assert (partial / "shard-00000.json").exists()
        finally:
            os.close(other)
        assert len(collect(backbone, images, tmp_path / "out")) == 6

    def test_overwritten_only_when_all_is_written(self, backbone, images, tmp_path):
        collect(backbone, images, tmp_path / "out")
        before = contents(tmp_path / "out")
        again = {"dtype": "bfloat16", "overwrite": True}
        cut_off(4, (module, "write_atomically"), lambda: collect(backbone, images, tmp_path / "out", **again))
        assert contents(tmp_path / "out") == before
        assert collect(backbone, images, tmp_path / "out", **again).manifest["dtype"] == "bfloat16"
        assert not list(tmp_path.glob(".*"))


class TestCommand:
    FACTORY = f"{Path(__file__).parent / 'planted.py'}:Planted"

    def run(self, capsys, *arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["collect", *map(str, arguments), "--backbone", self.FACTORY, "--workers", "0"])
        return status, *capsys.readouterr()

    def test_says_the_disk_first_and_ends_with_status_3(self, capsys, images, tmp_path):
        out = tmp_path / "out"
        status, text, err = self.run(capsys, tmp_path / "data", "--sites", "blocks.[12].hook_resid_post", "--out", out)
        assert status == 3 and "Activations will take 45.7 kB; the disk has" in err and "2.png: not an image" in err
        assert "blocks.1.hook_resid_post" in text and "17 x 48" in text and f"Written to {out}" in text

    def test_json(self, capsys, images, tmp_path):
        images.images[2].unlink()
        sites = "blocks.0.hook_resid_post,blocks.5.*"
        places = (tmp_path / "data", "--sites", sites, "--out", tmp_path / "out")
        status, text, _ = self.run(capsys, *places, "--dtype", "float16", "--shard-size", 4, "--json", "--quiet")
        said = json.loads(text)
        assert status == 0 and said["schema"] == "dna_probe.collect/1" and (said["images"], said["shards"]) == (6, 2)
        assert said["sites"]["blocks.0.hook_resid_post"] == [TOKENS, WIDTH] and len(said["sites"]) > 1
        assert said["bytes"] == open_activations(tmp_path / "out").size

    def test_mistakes_end_with_status_2(self, capsys, images, tmp_path):
        data, out = tmp_path / "data", tmp_path / "out"
        for wrong in (("--sites", "blocks.0.hook_resid_pots"), ("--sites", "blocks.*", "--dtype", "int8")):
            status, _, err = self.run(capsys, data, *wrong, "--out", out)
            assert status == 2 and err.splitlines()[-1].startswith("dna-probe: Unknown")
        assert not out.exists()
