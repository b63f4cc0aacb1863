"""Each published layout, by name and by discovery, in a folder and in a zip, with files that trip readers up."""

import json
import re

import pytest

from dna_probe.errors import DataError
from dna_probe.images.layouts import LAYOUTS, read_images
from dna_probe.images.reading import UnreadableImage, read_image

from .made_up_trees import (
    NASTY,
    UNREADABLE,
    assert_reads_back,
    groups_of,
    plant,
    plant_nasty,
    told,
    zip_up,
)

UFD_FAKES = ("guided", "ldm_200", "ldm_200_cfg", "ldm_100", "glide_100_27", "glide_50_27", "glide_100_10", "dalle")
# layout -> folder -> what it says of the images in it; the first fake folder gets the nasty files.
TREES = {
    "forensynths": {
        "train/progan/cat/1_fake": (1, "progan", "train"),
        "train/progan/cat/0_real": (0, "real", "train"),
        "val/progan/dog/0_real": (0, "real", "val"),
        "val/progan/dog/1_fake": (1, "progan", "val"),
        "test/stylegan/1_fake": (1, "stylegan", "test"),
        "test/stylegan/0_real": (0, "real", "test"),
    },
    "ufd": {
        **{f"{name}/1_fake": (1, name, "") for name in UFD_FAKES},
        "imagenet/0_real": (0, "real", ""),
        "laion/0_real": (0, "real", ""),
    },
    "aigcdetect": {
        "test/ADM/1_fake": (1, "ADM", "test"),
        "test/ADM/0_real": (0, "real", "test"),
        "test/progan/cat/1_fake": (1, "progan", "test"),
        "test/progan/cat/0_real": (0, "real", "test"),
    },
    "genimage": {
        "BigGAN/imagenet_ai_0419_biggan/train/ai": (1, "BigGAN", "train"),
        "BigGAN/imagenet_ai_0419_biggan/train/nature": (0, "real", "train"),
        "BigGAN/imagenet_ai_0419_biggan/val/ai": (1, "BigGAN", "val"),
        "BigGAN/imagenet_ai_0419_biggan/val/nature": (0, "real", "val"),
        "ADM/val/ai": (1, "ADM", "val"),
        "ADM/val/nature": (0, "real", "val"),
    },
    "chameleon": {"test/1_fake": (1, "fake", "test"), "test/0_real": (0, "real", "test")},
    "aigibench": {
        "test/FaceSwap/v2/1_fake": (1, "FaceSwap", "test"),
        "test/FaceSwap/v2/0_real": (0, "real", "test"),
        "test/SD3/1_fake": (1, "SD3", "test"),
        "test/SD3/0_real": (0, "real", "test"),
    },
    "wildfake": {
        "Images/Diffusion_based/DALLE/one": (1, "DALLE", ""),
        "Images/GAN_based/BigGAN": (1, "BigGAN", ""),
        "Images/Real/coco": (0, "real", ""),
    },
    "truefake": {
        "PreSocial/Fake/StyleGAN3/psi": (1, "StyleGAN3", ""),
        "Facebook/Fake/StyleGAN3/psi": (1, "StyleGAN3", ""),
        "Telegram/Fake/SDXL": (1, "SDXL", ""),
        "PreSocial/Real/FFHQ": (0, "real", ""),
        "Twitter/Real/FFHQ": (0, "real", ""),
    },
    "folders": {
        "fake/sdxl": (1, "sdxl", ""),
        "fake/glide/deep": (1, "glide", ""),
        "real": (0, "real", ""),
    },
    "hifi-gen": {
        "some/FAKE/newest": (1, "newest", ""),
        "some/Real/camera": (0, "real", ""),
    },
}
# What discovery calls them: the first three lie alike.
DISCOVERED = {
    **{name: f"{name}: " for name in TREES},
    "forensynths": "folders: class folders '0_real' and '1_fake', generator above them, splits test, train and val, "
    "like forensynths, aigcdetect and aigibench",
    "aigcdetect": "folders: ",
    "aigibench": "folders: ",
    "hifi-gen": "folders: class folders 'FAKE' and 'Real', generator below them, no splits",
}


def build(root, layout):
    """The tree, and path -> (label, generator, split) of all it holds."""
    expected = {}
    for number, (folder, says) in enumerate(TREES[layout].items()):
        names = [f"{folder}/{layout}{number}_{letter}.png" for letter in "xy"]
        plant(root, *names)
        if number == 0:
            plant_nasty(root / folder)
            names += [f"{folder}/{name}" for name in NASTY]
        expected.update(dict.fromkeys(names, says))
    return expected


def reasons(image_set):
    """The reasons of the images that cannot be read, by file name."""
    found = {}
    for source, name in zip(image_set.images, image_set.names, strict=True):
        try:
            read_image(source)
        except UnreadableImage as error:
            found[re.split(r"/|::", name)[-1]] = error.reason
    return found


@pytest.mark.parametrize("layout", TREES)
def test_a_tree_of_each_layout(tmp_path, layout):
    root = tmp_path / "data"
    expected = build(root, layout)
    named, found = read_images(root, layout=layout), read_images(root)
    assert told(named, root) == told(found, root) == expected
    assert named.groups == found.groups and named.skipped == found.skipped == ()
    assert found.layout.startswith(DISCOVERED[layout])
    assert named.layout.startswith(layout)
    assert {name: reason.split(" (")[0] for name, reason in reasons(named).items()} == {
        name: NASTY[name].split(" (")[0] for name in UNREADABLE
    }
    written = assert_reads_back(named, root / "m.csv", tmp_path / "else" / "m.jsonl", tmp_path / "m.parquet")
    assert {name.rpartition("/")[2] for name, _ in written.skipped} == UNREADABLE
    assert len(written) == len(named) - len(UNREADABLE)


@pytest.mark.parametrize("layout", TREES)
def test_the_same_tree_in_a_zip(tmp_path, layout):
    expected = build(tmp_path / "tree", layout)
    archive = zip_up(tmp_path / "tree", tmp_path / "data.zip")
    found = read_images(archive)
    assert told(found) == told(read_images(archive, layout=layout)) == expected
    assert reasons(found).keys() == UNREADABLE
    written = assert_reads_back(found, tmp_path / "m.csv", tmp_path / "else" / "m.parquet")
    assert len(written) == len(expected) - len(UNREADABLE)


@pytest.mark.parametrize("layout", [name for name in TREES if name not in ("folders", "hifi-gen")])
def test_a_tree_that_is_not_it(tmp_path, layout):
    plant(tmp_path, "photos/a.png", "photos/b.png", "drawn/c.png")
    with pytest.raises(DataError) as caught:
        read_images(tmp_path, layout=layout)
    assert f"is not arranged as {layout}. Expected " in str(caught.value)
    assert "only 0 of 3 images lie so; found photos/ (2), drawn/ (1)" in str(caught.value)
    with pytest.raises(DataError, match="No images in"):
        (tmp_path / "nothing").mkdir()
        read_images(tmp_path / "nothing", layout=layout)


@pytest.mark.parametrize(
    "tree, layout",
    [
        ("genimage", "forensynths"),
        ("forensynths", "genimage"),
        ("forensynths", "ufd"),
        ("chameleon", "aigibench"),
        ("forensynths", "chameleon"),
        ("folders", "truefake"),
        ("folders", "wildfake"),
        ("folders", "dda"),
        ("genimage", "synthbuster"),
        ("genimage", "faceforensics"),
    ],
)
def test_one_layout_is_not_taken_for_another(tmp_path, tree, layout):
    build(tmp_path, tree)
    with pytest.raises(DataError, match=f"is not arranged as {layout}"):
        read_images(tmp_path, layout=layout)


def test_mistyped_and_misplaced_names(tmp_path):
    plant(tmp_path, "real/a.png", "fake/b.png")
    with pytest.raises(DataError, match=r"Unknown layout 'genimge'\. Did you mean 'genimage'"):
        read_images(tmp_path, layout="genimge")
    for layout, words in (
        ("zip", r"Expected \.zip files, found a folder with 2 images"),
        ("webdataset", r"Expected \.tar files, found a folder with 2 images"),
        ("parquet", "found a folder with 2 images"),
        ("manifest", "found a folder with 2 images"),
        ("datasets", "Expected a Dataset or DatasetDict, or a folder that its save_to_disk wrote"),
        ("openfake", "found a folder with 2 images"),
    ):
        with pytest.raises(DataError, match=words):
            read_images(tmp_path, layout=layout)
    with pytest.raises(DataError, match="A tuple has no layout 'genimage'"):
        read_images(([], []), layout="genimage")
    assert all(layout.description and layout.name == name for name, layout in LAYOUTS.items())


def test_files_that_lie_elsewhere_are_skipped_with_the_expectation(tmp_path):
    build(tmp_path, "genimage")
    plant(tmp_path, "extra/stray.png")
    made = read_images(tmp_path, layout="genimage")
    assert len(made.skipped) == 1 and "does not lie as genimage expects: <generator>/" in made.skipped[0][1]


@pytest.mark.parametrize("inner", ["ADM", "ADM/val"])
def test_the_folder_given_may_be_a_part_of_the_set(tmp_path, inner):
    plant(tmp_path, "ADM/val/ai/a.png", "ADM/val/nature/b.png")
    made = read_images(tmp_path / "ADM", layout="genimage")
    assert made.generators == ("ADM", "real") and made.splits == ("val", "val")


def test_ufd_says_which_reals_stand_beside_which_fakes(tmp_path):
    build(tmp_path, "ufd")
    layout = read_images(tmp_path).layout
    assert "reals: imagenet beside guided, laion beside dalle, glide_50_27" in layout


def test_synthbuster_keeps_stems_together(tmp_path):
    stems = [f"r{number:08x}t" for number in range(7)]
    makers = ("dalle3", "midjourney-v5", "firefly")
    plant(tmp_path, *(f"{maker}/{stem}.png" for maker in makers for stem in stems))
    plant(tmp_path, *(f"RAISE-1k/{stem}.png" for stem in stems))
    plant_nasty(tmp_path / "firefly")
    for made in (read_images(tmp_path), read_images(tmp_path, layout="synthbuster")):
        groups = groups_of(made, tmp_path)
        assert len({groups[f"{folder}/{stems[0]}.png"] for folder in (*makers, "RAISE-1k")}) == 1
        assert len(set(groups.values())) == 7 + len(NASTY)
        assert made.counts() == {"real": 7, "dalle3": 7, "firefly": 7 + len(NASTY), "midjourney-v5": 7}
        assert made.layout.startswith("synthbuster: ")
    assert_reads_back(made, tmp_path / "m.csv")
    plant(tmp_path, *(f"more/{number}.png" for number in range(40)))
    with pytest.raises(DataError, match="images are not named rXXXXXXXXt, the first is"):
        read_images(tmp_path, layout="synthbuster")


def test_dda_pairs(tmp_path):
    plant(tmp_path, "real/one.png", "real/two.png", "fake/one.png", "fake/two.png")
    plant_nasty(tmp_path / "real")
    made = read_images(tmp_path)
    groups = groups_of(made, tmp_path)
    assert made.layout.startswith("dda: ") and groups["real/one.png"] == groups["fake/one.png"] == "one"
    assert len(set(groups.values())) == 2 + len(NASTY)
    plant(tmp_path, "fake/stray.png")
    # One stray fake: still its pairs by name, no longer told by discovery, which pairs them all the same.
    assert read_images(tmp_path, layout="dda").generators.count("fake") == 3
    discovered = read_images(tmp_path)
    assert discovered.layout.endswith("like dda")
    assert groups_of(discovered, tmp_path)["real/two.png"] == groups_of(discovered, tmp_path)["fake/two.png"]
    plant(tmp_path, "fake/s2.png", "fake/s3.png")
    with pytest.raises(DataError, match="only 2 of 5 fakes are named like a real image"):
        read_images(tmp_path, layout="dda")


def test_truefake_keeps_one_picture_together_on_all_platforms(tmp_path):
    plant(tmp_path, *(f"{place}/Fake/SDXL/a.png" for place in ("PreSocial", "Facebook", "Telegram")))
    plant(tmp_path, "PreSocial/Fake/Flux/a.png", "PreSocial/Real/FFHQ/a.png", "Twitter/Real/FFHQ/a.png")
    groups = groups_of(read_images(tmp_path), tmp_path)
    assert groups["PreSocial/Fake/SDXL/a.png"] == groups["Telegram/Fake/SDXL/a.png"]
    assert groups["PreSocial/Real/FFHQ/a.png"] == groups["Twitter/Real/FFHQ/a.png"]
    assert len(set(groups.values())) == 3


class TestFaceForensics:
    def build(self, root, lists=True):
        for video in ("071", "054", "100", "101"):
            plant(root, *(f"original_sequences/youtube/c23/frames/{video}/{n}.png" for n in (2, 10)))
        for method in ("Deepfakes", "FaceSwap"):
            for pair in ("071_054", "100_101"):
                plant(root, *(f"manipulated_sequences/{method}/c23/frames/{pair}/{n}.png" for n in (2, 10, 1)))
        plant(root, "original_sequences/actors/c23/frames/01__talking/0.png")
        plant(root, "manipulated_sequences/DeepFakeDetection/c23/frames/01_02__talking__ABC/0.png")
        plant_nasty(root / "manipulated_sequences/Deepfakes/c40/images/071_054")
        if lists:
            (root / "train.json").write_text(json.dumps([["071", "054"]]))
            (root / "test.json").write_text(json.dumps([["101", "100"]]))
        return root

    def test_labels_splits_groups_and_order(self, tmp_path):
        root = self.build(tmp_path / "ff")
        made = read_images(root)
        assert told(made, root) == told(read_images(root, layout="faceforensics"), root)
        assert made.layout.startswith("faceforensics: ") and made.layout.endswith("splits train and test")
        rows, groups = told(made, root), groups_of(made, root)
        assert rows["original_sequences/youtube/c23/frames/054/2.png"] == (0, "real", "train")
        assert rows["manipulated_sequences/FaceSwap/c23/frames/100_101/10.png"] == (1, "FaceSwap", "test")
        assert rows["manipulated_sequences/Deepfakes/c40/images/071_054/a.b.jpg"] == (1, "Deepfakes", "train")
        pair = [group for path, group in groups.items() if "071" in path or "054" in path]
        assert set(pair) == {"videos with 054"}
        assert set(groups.values()) == {"videos with 054", "videos with 100", "videos with actor 01"}
        frames = [name.rpartition("/")[2] for name in made.names if "FaceSwap/c23/frames/071_054" in name]
        assert frames == ["1.png", "2.png", "10.png"]
        assert all(split == "" for path, (_, _, split) in rows.items() if "actors" in path)
        assert_reads_back(made, root / "m.jsonl")

    def test_without_lists_there_are_no_splits(self, tmp_path):
        made = read_images(self.build(tmp_path, lists=False))
        assert set(made.splits) == {""} and made.layout.endswith("no splits")

    def test_lists_that_contradict(self, tmp_path):
        root = self.build(tmp_path)
        (root / "test.json").write_text(json.dumps([["054", "100"]]))
        with pytest.raises(DataError, match=r"a video that shares a face with it lies in train"):
            read_images(root)
        for content in ("{}", "[1]", "not json"):
            (root / "test.json").write_text(content)
            with pytest.raises(DataError, match="split list"):
                read_images(root)

    def test_only_the_manipulated_part(self, tmp_path):
        root = self.build(tmp_path)
        made = read_images(root / "manipulated_sequences")
        assert set(made.labels.tolist()) == {1} and "videos with 054" in made.groups


class TestHifiGen:
    def test_a_manifest_inside(self, tmp_path):
        plant(tmp_path, "images/a.png", "images/b.png")
        (tmp_path / "index.csv").write_text("file_name,label,model\nimages/a.png,real,\nimages/b.png,fake,newest\n")
        made = read_images(tmp_path, layout="hifi-gen")
        assert made.generators == ("real", "newest")
        assert made.layout == (
            "hifi-gen, whose layout is not documented; discovered: "
            "manifest: path in 'file_name', label in 'label', generator in 'model', no splits"
        )

    def test_manifests_in_split_folders(self, tmp_path):
        for split in ("train", "test"):
            plant(tmp_path, f"{split}/1.png", f"{split}/2.png")
            lines = ["file_name,label", "1.png,0", "2.png,1"]
            (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
        made = read_images(tmp_path)
        assert sorted(made.splits) == ["test", "test", "train", "train"] and "2 files" in made.layout

    def test_a_table_that_is_no_manifest_gives_its_reason(self, tmp_path):
        (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match=r"notes\.csv has no columns 'path' and 'label'\. its columns are a, b"):
            read_images(tmp_path)

    def test_other_things_beside_the_images_are_told(self, tmp_path):
        plant(tmp_path, "real/a.png", "fake/b.png")
        zip_up(tmp_path / "real", tmp_path / "more.zip")
        assert read_images(tmp_path).layout.endswith("; beside the images, not read: 1 zip")
