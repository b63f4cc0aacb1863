"""Every layout on disk gives the right labels, generators, splits and groups."""

import os

import numpy as np
import pytest
from PIL import Image

from dna_probe.batches import load_batches
from dna_probe.errors import DataError
from dna_probe.images.layouts import read_images, read_unlabelled
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.sets import ImageSet

SMALL = Preprocessing(input_size=(8, 8), crop_pct=1.0)


def plant(root, *names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number % 256, 0, 0)).save(path)
    return root


def found(image_set, root):
    """relative path -> (label, generator, split)"""
    rows = zip(image_set.images, image_set.labels.tolist(), image_set.generators, image_set.splits, strict=True)
    return {path.relative_to(root).as_posix(): rest for path, *rest in ((p, label, g, s) for p, label, g, s in rows)}


LAYOUTS = {
    "plain": {
        "real/a.png": (0, "real", ""),
        "fake/sdxl/b.png": (1, "sdxl", ""),
        "fake/dalle/deep/c.png": (1, "dalle", ""),
    },
    "one generator": {"real/a.png": (0, "real", ""), "fake/b.png": (1, "fake", "")},
    "any case, plural": {"Reals/a.png": (0, "real", ""), "FAKES/Glide/b.png": (1, "Glide", "")},
    "ForenSynths": {
        "test/progan/cat/0_real/1.png": (0, "real", "test"),
        "test/progan/cat/1_fake/2.png": (1, "progan", "test"),
        "val/progan/0_real/3.png": (0, "real", "val"),
        "val/stylegan/1_fake/4.png": (1, "stylegan", "val"),
        "train/progan/1_fake/5.png": (1, "progan", "train"),
    },
    "diffusion folders": {"imagenet/0_real/a.png": (0, "real", ""), "ldm_200_cfg/1_fake/b.png": (1, "ldm_200_cfg", "")},
    "GenImage": {
        "BigGAN/imagenet_ai_0419_biggan/train/ai/a.png": (1, "BigGAN", "train"),
        "BigGAN/imagenet_ai_0419_biggan/train/nature/b.png": (0, "real", "train"),
        "ADM/val/ai/c.png": (1, "ADM", "val"),
        "ADM/val/nature/d.png": (0, "real", "val"),
    },
    "Chameleon": {"test/0_real/a.png": (0, "real", "test"), "test/1_fake/b.png": (1, "fake", "test")},
    "AIGIBench": {
        "test/faceswap/v2/1_fake/a.png": (1, "faceswap", "test"),
        "test/faceswap/v2/0_real/b.png": (0, "real", "test"),
    },
    "TrueFake": {"Facebook/Fake/StyleGAN3/a.png": (1, "StyleGAN3", ""), "Facebook/Real/FFHQ/b.png": (0, "real", "")},
    "a subject named nature": {"fake/sdxl/nature/a.png": (1, "sdxl", ""), "real/ai/b.png": (0, "real", "")},
    "generator above fake": {"glide/fake/a.png": (1, "glide", ""), "glide/real/b.png": (0, "real", "")},
    "names that only contain the words": {
        "real/x.png": (0, "real", ""),
        "fake/realistic_vision/y.png": (1, "realistic_vision", ""),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    expected = LAYOUTS[name]
    plant(tmp_path, *expected)
    assert found(read_images(tmp_path), tmp_path) == {path: list(rest) for path, rest in expected.items()}
    assert found(read_images(str(tmp_path)), tmp_path).keys() == expected.keys()


def test_natural_order_hidden_files_and_other_suffixes(tmp_path):
    plant(
        tmp_path, "real/f10.png", "real/f2.png", "real/f1.png", "fake/g/x.JPEG", "fake/g/.hidden.png", "fake/.git/y.png"
    )
    plant(tmp_path, "__MACOSX/real/z.png")
    (tmp_path / "real" / "notes.txt").write_text("no image")
    made = read_images(tmp_path)
    assert [path.name for path in made.images] == ["x.JPEG", "f1.png", "f2.png", "f10.png"]
    assert made.origin == str(tmp_path) and made.skipped == ()


def test_images_under_no_class_are_listed(tmp_path):
    plant(tmp_path, "real/a.png", "fake/b.png", "other/c.png")
    made = read_images(tmp_path)
    assert len(made) == 2
    assert made.skipped == ((str(tmp_path / "other" / "c.png"), "lies in no folder that names its class"),)


def test_a_class_folder_itself(tmp_path):
    plant(tmp_path, "fake/sdxl/a.png", "fake/glide/b.png")
    assert read_images(tmp_path / "fake").generators == ("glide", "sdxl")
    plant(tmp_path, "real/fake/c.png", "real/real/d.png", "real/stray.png")
    inner = read_images(tmp_path / "real")
    assert sorted(inner.labels.tolist()) == [0, 1] and len(inner.skipped) == 1


def test_links_are_followed_once(tmp_path):
    plant(tmp_path / "store", "a.png", "b.png")
    (tmp_path / "data" / "fake").mkdir(parents=True)
    plant(tmp_path / "data", "real/c.png")
    os.symlink(tmp_path / "store", tmp_path / "data" / "fake" / "sdxl")
    os.symlink(tmp_path / "data", tmp_path / "data" / "real" / "circle")
    made = read_images(tmp_path / "data")
    assert made.labels.tolist().count(1) == 2 and made.labels.tolist().count(0) == 1


def test_nasty_files_stay_in_the_set_and_fail_with_a_reason(tmp_path):
    plant(tmp_path, "real/a.b.jpg", "real/grüße.png", "fake/g/x.gif", "fake/g/y.JPEG")
    (tmp_path / "real" / "empty.jpg").write_bytes(b"")
    (tmp_path / "fake" / "g" / "text.jpg").write_text("no image")
    (tmp_path / "fake" / "g" / "cut.jpg").write_bytes((tmp_path / "real" / "a.b.jpg").read_bytes()[:200])
    made = read_images(tmp_path)
    assert len(made) == 7 and made.skipped == ()
    failures = [failure for batch in load_batches(made, SMALL) for failure in batch.failures]
    assert [(os.path.basename(name), reason.split(":")[0]) for _, name, reason in failures] == [
        ("cut.jpg", "truncated"),
        ("text.jpg", "not an image"),
        ("empty.jpg", "empty file (0 bytes)"),
    ]


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="No such folder or manifest"):
        read_images(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No images in"):
        read_images(tmp_path / "empty")
    plant(tmp_path / "loose", "a.png", "b.png")
    with pytest.raises(DataError, match=r"holds 2 images, but none lies below a folder named real or fake"):
        read_images(tmp_path / "loose")
    with pytest.raises(DataError, match="is one image"):
        read_images(tmp_path / "loose" / "a.png")
    (tmp_path / "data.txt").write_text("no images")
    with pytest.raises(DataError, match="neither a folder nor a manifest nor an archive"):
        read_images(tmp_path / "data.txt")
    with pytest.raises(DataError, match="A dict is no image set"):
        read_images({})


def test_tuples_in_memory(tmp_path):
    images = [np.full((9, 9, 3), value, np.uint8) for value in range(3)]
    made = read_images((images, [0, 1, 1]))
    assert made.generators == ("real", "fake", "fake") and made.groups == ("0", "1", "2")
    assert read_images((np.stack(images), ["real", "fake", "FAKE"], ["p", "p", 7])).groups == ("p", "p", "7")
    assert read_images((images, np.array([0, 1, 1]))).labels.tolist() == [0, 1, 1]
    assert read_images(made) is made
    plant(tmp_path, "a.png", "b.png")
    paths = read_images(([str(tmp_path / "a.png"), tmp_path / "b.png"], [0, 1]))
    assert paths.images == (tmp_path / "a.png", tmp_path / "b.png")
    for wrong, words in [
        ((images, [0, 1]), "3 images but 2 labels"),
        ((images, ["real", "fake", "maybe"]), "Unknown label 'maybe'"),
        ((images,), "A tuple of 1"),
        (([], []), "No images were given"),
        (("folder", [0]), "not the single path folder"),
    ]:
        with pytest.raises(DataError, match=words):
            read_images(wrong)


def test_unlabelled_files_folders_and_patterns(tmp_path):
    plant(tmp_path, "d/f10.png", "d/f2.jpg", "d/deep/f1.png", "one.png", "two[1].png")
    (tmp_path / "d" / "readme.txt").write_text("no image")
    d = tmp_path / "d"
    assert read_unlabelled([tmp_path / "one.png", d]) == [
        tmp_path / "one.png",
        d / "deep/f1.png",
        d / "f2.jpg",
        d / "f10.png",
    ]
    assert read_unlabelled(str(d / "*.png")) == [d / "f10.png"]
    assert read_unlabelled([d / "f*"]) == [d / "f2.jpg", d / "f10.png"]
    assert set(read_unlabelled([str(tmp_path / "**" / "*.png")])) == set(tmp_path.rglob("*.png"))
    assert read_unlabelled(tmp_path / "two[1].png") == [tmp_path / "two[1].png"]
    # Named outright, even a text file is taken, so that it is reported.
    assert read_unlabelled([d / "readme.txt"]) == [d / "readme.txt"]
    assert len(read_unlabelled([str(tmp_path / "**")])) == 5
    for wrong in ([tmp_path / "gone.png"], [tmp_path / "one.png", str(tmp_path / "*.gif")], [], [tmp_path / "empty"]):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError) as caught:
            read_unlabelled(wrong)
        assert not wrong or str(wrong[-1]) in str(caught.value)


def test_prompts_shared_by_generators_share_a_group(tmp_path):
    plant(tmp_path, *(f"fake/{g}/ai_{g}_{n}.png" for g in ("SDXL_Base", "Midjourney_6") for n in (1, 2, 10)))
    plant(tmp_path, "real/real_1.png", "real/real_10.png")
    made = read_images(tmp_path)
    groups = {path.name: group for path, group in zip(made.images, made.groups, strict=True)}
    assert groups["ai_SDXL_Base_10.png"] == groups["ai_Midjourney_6_10.png"] == "10"
    assert groups["ai_SDXL_Base_1.png"] == groups["ai_Midjourney_6_1.png"] == "1"
    # The reals are numbered for themselves.
    assert len({groups["real_1.png"], groups["real_10.png"], "1", "2", "10"}) == 5


def test_pairs_of_real_and_fake_share_a_group(tmp_path):
    plant(
        tmp_path, "real/r1.png", "real/r2.png", "fake/dalle/r1.png", "fake/glide/glide_r2.png", "fake/glide/other.png"
    )
    made = read_images(tmp_path)
    groups = {
        path.relative_to(tmp_path).as_posix(): group for path, group in zip(made.images, made.groups, strict=True)
    }
    assert groups["real/r1.png"] == groups["fake/dalle/r1.png"]
    assert groups["real/r2.png"] == groups["fake/glide/glide_r2.png"]
    assert len(set(groups.values())) == 3


def test_groups_do_not_say_where_the_set_lies(tmp_path):
    plant(tmp_path / "here" / "data", "real/x.png", "fake/a/p.png")
    plant(tmp_path / "there" / "data", "real/x.png", "fake/a/p.png")
    here = read_images(tmp_path / "here" / "data")
    assert here.groups == read_images(tmp_path / "there" / "data").groups == ("data/fake/a/p.png", "data/real/x.png")


def test_unrelated_names_are_groups_of_their_own(tmp_path):
    plant(tmp_path, "real/x.png", "real/y.png", "fake/a/p.png", "fake/a/q.png", "fake/b/s.png")
    assert len(set(read_images(tmp_path).groups)) == 5


def test_equal_names_in_different_subjects_stay_apart(tmp_path):
    plant(tmp_path, *(f"{g}/{c}/1_fake/0001.png" for g in ("progan", "stylegan") for c in ("cat", "dog")))
    made = read_images(tmp_path)
    assert made.generators == ("progan", "progan", "stylegan", "stylegan")
    assert made.groups[0] == made.groups[2] != made.groups[1] == made.groups[3]


@pytest.mark.real
def test_the_real_sets(shared_data):
    genai5 = read_images(shared_data / "images" / "genai5")
    assert genai5.counts()["real"] == 450 and (genai5.labels == 1).sum() == 500
    assert len(set(genai5.of_label(1).groups)) == 100 and len(set(genai5.of_label(0).groups)) == 450
    assert len(set(genai5.of_label(1).generators)) == 5
    assert read_images(shared_data / "images" / "stylegan2-ffhq").counts() == {"real": 24, "stylegan2": 24}
    assert isinstance(genai5, ImageSet)
