import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.evaluation.audit import Audit, audit, audit_inspected, inspect_set
from dna_probe.evaluation.audit_sentences import LIMIT
from dna_probe.evaluation.file_features import (
    FAMILIES,
    METADATA_NAMES,
    inspect,
    metadata_features,
    metadata_probe,
    thumbnail_features,
)
from dna_probe.evaluation.file_histograms import histograms
from dna_probe.images.layouts import read_images
from dna_probe.images.reading import UnreadableImage, content_hash, read_image
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import EncodedImage
from dna_probe.images.views import Equalisation, equalise_set


def picture(rng, size=(96, 72), brightness=128):
    """A smooth random picture with a random amount of detail."""
    coarse = rng.normal(brightness, 35, (6, 8, 3)).clip(0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, rng.uniform(0, 12), smooth.shape)).clip(0, 255).astype(np.uint8))


def exif(**tags):
    made = Image.Exif()
    made.update({0x010F: "maker", 0x0110: "model"})
    return made


def save_class(folder, count, rng, suffix="jpg", size=(96, 72), brightness=128, **options):
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == "jpg":
        options = {"quality": 85} | options
    for i in range(count):
        picture(rng, size, brightness).save(folder / f"{folder.name}_{i}.{suffix}", **options)


def planted(root, seed=0, count=30, fake=None, real=None):
    rng = np.random.default_rng(seed)
    save_class(root / "real", count, rng, **(real or {}))
    save_class(root / "fake" / "gan", count, rng, **(fake or {}))
    return root


@pytest.mark.parametrize(
    ("difference", "told_by"),
    [
        ({"suffix": "png"}, "format"),
        ({"quality": 92}, "quantisation tables"),
        ({"size": (128, 128)}, "aspect"),
        ({"size": (192, 144)}, "size"),
        ({"exif": exif()}, "EXIF"),
        ({"subsampling": "4:4:4"}, "JPEG coding"),
        ({"progressive": True}, "JPEG coding"),
        ({"icc_profile": b"profile"}, "colour profile"),
        ({"comment": b"made by a model"}, "other entries"),
    ],
)
def test_a_planted_confound_is_flagged_and_named(tmp_path, difference, told_by):
    found = audit(planted(tmp_path, fake=difference))
    assert found.metadata_auc >= 0.95 and found.overall.metadata.low > LIMIT
    assert dict(found.overall.tells)[told_by] >= 0.95
    assert any("Metadata alone tells real from fake" in flag for flag in found.flags)
    assert "without a look at the pixels" in found.verdict and "equalise" in found.verdict


def test_equalising_takes_the_confounds_out(tmp_path):
    different = {"suffix": "png", "size": (192, 144), "exif": exif()}
    given = read_images(planted(tmp_path, fake=different, count=40))
    assert audit(given).metadata_auc >= 0.95
    found = audit(equalise_set(given, Equalisation(72, 64, 90)))
    assert [name for name, _ in found.overall.tells] == ["bytes per pixel"] and found.overall.coded_alike


def test_nothing_planted_is_not_flagged(tmp_path):
    found = [audit(planted(tmp_path / str(seed), seed, count=40), seed=seed) for seed in range(4)]
    assert np.mean([one.metadata_auc for one in found]) <= LIMIT
    assert np.mean([one.thumbnail_auc for one in found]) <= LIMIT
    clean = [one for one in found if one.metadata_auc <= LIMIT and one.thumbnail_auc <= LIMIT]
    assert clean and all(one.flags == () and one.verdict.startswith("Neither the files") for one in clean)


def test_colour_is_seen_by_the_thumbnail_and_not_by_the_metadata(tmp_path):
    found = audit(planted(tmp_path, count=40, fake={"brightness": 160}))
    assert found.thumbnail_auc >= 0.95 > found.metadata_auc
    assert any("16 x 16 pixels tell real from fake" in flag for flag in found.flags)


def test_one_generator_cannot_hide_behind_the_others(tmp_path):
    rng = np.random.default_rng(0)
    save_class(tmp_path / "real", 60, rng)
    for name in ("a", "b", "c", "d", "e", "f"):
        save_class(tmp_path / "fake" / name, 20, rng, quality=92 if name == "f" else 85)
    found = audit(tmp_path)
    assert [one.generator for one in found.comparisons] == ["all", "a", "b", "c", "d", "e", "f"]
    worst = {one.generator: one.metadata.value for one in found.comparisons}
    assert worst["f"] >= 0.95 > worst["all"] and max(worst[name] for name in "abcde") < 0.8
    flag = next(flag for flag in found.flags if "generators from the reals" in flag)
    assert "f 1.000 (quantisation tables)" in flag


def test_copies_and_leaks_are_found_and_told_apart(tmp_path):
    root = planted(tmp_path, count=8)
    real, fake = root / "real", root / "fake" / "gan"
    shutil.copy(real / "real_0.jpg", real / "copy.jpg")
    shutil.copy(real / "real_1.jpg", fake / "wrong.jpg")
    with Image.open(fake / "gan_2.jpg") as image:
        image.save(fake / "again.jpg", quality=60)
    with Image.open(real / "real_3.jpg") as image:
        image.resize((48, 36)).save(fake / "from_photo.jpg")
    given = read_images(root)
    splits = ["test" if name.endswith(("again.jpg", "copy.jpg", "gan_5.jpg")) else "train" for name in given.names]
    groups = ["one prompt" if name.endswith(("gan_5.jpg", "gan_6.jpg")) else name for name in given.names]
    found = audit(ImageSet(given.images, given.labels, given.generators, tuple(groups), tuple(splits)))

    def names(clusters):
        return [sorted(name.rsplit("/", 1)[1] for name in cluster.images) for cluster in clusters]

    assert sorted(names(found.duplicates)) == [["copy.jpg", "real_0.jpg"], ["real_1.jpg", "wrong.jpg"]]
    assert sorted(names(found.near_duplicates)) == [["again.jpg", "gan_2.jpg"], ["from_photo.jpg", "real_3.jpg"]]
    assert names(found.split_groups) == [["gan_5.jpg", "gan_6.jpg"]]
    assert {(reason, *names([cluster])[0]) for reason, cluster in found.leaks} == {
        ("the same file in more than one split", "copy.jpg", "real_0.jpg"),
        ("the same file under both labels", "real_1.jpg", "wrong.jpg"),
        ("near-duplicates in more than one split", "again.jpg", "gan_2.jpg"),
        ("one group in more than one split", "gan_5.jpg", "gan_6.jpg"),
    }
    assert [cluster.across_classes for cluster in found.near_duplicates].count(True) == 1
    assert "Leak: the same file under both labels (1 case)." in found.flags
    assert "Near-duplicates with both labels: 1 case." in found.flags
    assert found.verdict.endswith("; and there are 4 leaks to mend.")
    assert Audit.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_without_splits_nothing_leaks(tmp_path):
    root = planted(tmp_path, count=6)
    shutil.copy(root / "real" / "real_0.jpg", root / "real" / "copy.jpg")
    found = audit(root)
    assert len(found.duplicates) == 1 and found.leaks == ()


def test_an_audit_comes_back_from_json_and_reads_well(tmp_path):
    root = planted(tmp_path, fake={"suffix": "png"}, count=12)
    (root / "real" / "broken.jpg").write_bytes(b"no image")
    found = audit(root, workers=2)
    told = json.loads(json.dumps(found.to_json()))
    assert told["schema"] == "dna_probe.audit/1" and told["metadata_auc"] == found.metadata_auc
    assert told["metadata_interval"] == list(found.overall.metadata[1:])
    assert told["thumbnail_auc"] == found.thumbnail_auc and told["generators"] == {"gan": 12}
    assert told["images"] == {"real": 12, "fake": 12, "unlabelled": 0}
    (broken,) = told["unreadable"]
    assert broken["path"].endswith("broken.jpg") and "not an image" in broken["reason"]
    assert Audit.from_json(told) == found and audit(root) == found
    assert "Left out: 1 image that could not be used." in found.flags
    assert "metadata AUC 1.000" in repr(found) and found.verdict in repr(found) and "PNG 12" in repr(found)
    table = found.table()
    assert table["generator"].tolist() == ["all", "gan"] and table["metadata_auc"].tolist() == [1.0, 1.0]
    assert "format" in table["told_by"][0]


def test_one_class_cannot_be_compared(tmp_path):
    save_class(tmp_path / "real", 3, np.random.default_rng(0))
    with pytest.raises(DataError, match="holds no fake images"):
        audit(tmp_path)
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "broken.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="holds no fake images"):
        audit(tmp_path)


def test_too_few_images_are_no_measurement(tmp_path):
    found = audit(planted(tmp_path, count=1))
    assert found.metadata_auc is None and found.thumbnail_auc is None and found.overall.tells == ()
    assert "Too few images" in found.flags[0] and found.verdict.startswith("There are too few images")
    assert Audit.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert np.isnan(found.table()["metadata_auc"]).all()


def test_unlabelled_images_are_looked_through_for_copies_only(tmp_path):
    root = planted(tmp_path, count=6)
    given = read_images(root)
    labels = given.labels.copy()
    labels[0] = -1
    found = audit(ImageSet(given.images, labels, given.generators, given.groups))
    assert found.unlabelled == 1 and (found.overall.real, found.overall.fake) == (6, 5)


def test_pictures_in_memory_are_compared_by_what_they_have(rng):
    arrays = [np.asarray(picture(rng, (64, 64) if i < 10 else (48, 64))) for i in range(20)]
    found = audit((arrays, [0] * 10 + [1] * 10))
    assert found.metadata_auc == 1.0 and {name for name, _ in found.overall.told_by} == {"size", "aspect"}
    assert found.files["real"]["formats"] == {"none": 10} and found.files["real"]["bytes_per_pixel"] is None
    assert sum(found.histograms["bytes_per_pixel"].real) == 0


def test_files_that_do_not_differ_at_all_measure_one_half(rng):
    arrays = [np.asarray(picture(rng, (64, 64))) for _ in range(16)]
    found = audit((arrays, [0] * 8 + [1] * 8))
    assert found.overall.metadata == (0.5, 0.5, 0.5) and found.overall.tells == ()


def test_an_inspected_set_is_not_read_again(tmp_path):
    given = read_images(planted(tmp_path, count=6))
    images, seen = inspect_set(given)
    assert audit_inspected(images, seen) == audit(given)


class TestFeatures:
    def test_every_column_belongs_to_one_family(self):
        assert len(set(METADATA_NAMES)) == len(METADATA_NAMES) == sum(map(len, FAMILIES.values()))

    def test_a_jpeg_is_told_in_full(self, tmp_path, rng):
        path = tmp_path / "a.jpg"
        picture(rng, (96, 72)).save(path, quality=75, exif=exif(), progressive=True, subsampling="4:4:4")
        values, names = metadata_features([path])
        told = dict(zip(names, values[0], strict=True))
        assert told["format=JPEG"] == told["mode=RGB"] == told["progressive"] == told["chroma=4:4:4"] == 1
        assert told["format=PNG"] == told["chroma=4:2:0"] == 0 and told["jpeg_quality"] == 75
        assert (told["width"], told["height"], told["aspect"]) == (96, 72, pytest.approx(4 / 3))
        assert told["exif"] == 1 and told["exif_tags"] == 2 and told["quantisation_tables"] == 2
        assert (told["luminance[0]"], told["luminance[1]"]) == (8, 6) and told["sides_in_eights"] == 1
        assert told["bytes_per_pixel"] == path.stat().st_size / (96 * 72)

    def test_a_source_says_the_same_in_every_form(self, tmp_path, rng):
        path = tmp_path / "a.png"
        picture(rng).save(path)
        forms = [path, str(path), path.read_bytes(), EncodedImage("a", path.read_bytes())]
        values, _ = metadata_features(forms)
        assert (values == values[0]).all() and values.dtype == np.float64
        for form in forms:
            seen = inspect(form)
            assert np.array_equal(seen.metadata, values[0]) and seen.sha256 == content_hash(path)
            assert np.array_equal(seen.thumbnail, thumbnail_features([path])[0])

    def test_a_turned_image_has_the_size_it_is_seen_in(self, tmp_path, rng):
        turned = exif()
        turned[0x0112] = 6
        picture(rng, (96, 72)).save(tmp_path / "a.jpg", exif=turned)
        seen = inspect(tmp_path / "a.jpg")
        assert (seen.facts["width"], seen.facts["height"]) == read_image(tmp_path / "a.jpg").size == (72, 96)

    def test_thumbnails_are_rows_of_pixels(self, rng):
        flat = Image.new("RGB", (40, 30), (10, 20, 30))
        values = thumbnail_features([flat, picture(rng)])
        assert values.shape == (2, 768) and values.dtype == np.float64
        assert values[0].reshape(16, 16, 3).reshape(-1, 3).tolist() == [[10, 20, 30]] * 256
        assert thumbnail_features([], 8).shape == (0, 192) and metadata_features([])[0].shape[0] == 0

    def test_an_unreadable_source_is_named_with_its_reason(self, tmp_path):
        (tmp_path / "empty.jpg").write_bytes(b"")
        for read in (inspect, lambda one: metadata_features([one]), lambda one: thumbnail_features([one])):
            with pytest.raises(UnreadableImage, match=r"empty\.jpg: empty file"):
                read(tmp_path / "empty.jpg")
            with pytest.raises(UnreadableImage, match="no such file"):
                read(tmp_path / "missing.jpg")
            with pytest.raises(UnreadableImage, match="a folder"):
                read(tmp_path)

    def test_a_truncated_image_has_metadata_but_cannot_be_inspected(self, tmp_path, rng):
        path = tmp_path / "cut.jpg"
        picture(rng).save(path)
        path.write_bytes(path.read_bytes()[:-300])
        assert metadata_features([path])[0][0, METADATA_NAMES.index("width")] == 96
        with pytest.raises(UnreadableImage, match="truncated"):
            inspect(path)

    @pytest.mark.parametrize("labels", [[0, 1], [1, 0, 0, 1]])
    def test_the_forest_can_learn_from_one_shot(self, labels):
        values = np.array(labels, float)[:, None]
        scores = metadata_probe(0).fit(values, labels).decision_function(np.array([[0.0], [1.0]]))
        assert scores[0] < 0 < scores[1]


@given(
    st.lists(
        st.tuples(st.integers(8, 5000), st.integers(8, 5000), st.integers(1, 10**7), st.integers(0, 100)), min_size=1
    ),
    st.randoms(),
)
def test_every_image_is_in_one_bin_or_missing(rows, random):
    facts = [
        {
            "format": random.choice(["JPEG", "PNG", None]),
            "exif": random.choice([0, 3]),
            "quality": quality or None,
            "width": width,
            "height": height,
            "bytes": size,
        }
        for width, height, size, quality in rows
    ]
    labels = np.array([random.choice([0, 1]) for _ in rows])
    for made in histograms(facts, labels).values():
        for name, counts in (("real", made.real), ("fake", made.fake)):
            assert sum(counts) + made.missing[name] == (labels == (name == "fake")).sum()


@pytest.mark.real
def test_the_real_confound_is_found_and_equalising_removes_it(shared_data):
    given = read_images(shared_data / "images" / "stylegan2-ffhq")
    found = audit(given, workers=2)
    assert found.metadata_auc >= 0.95 and dict(found.overall.tells)["quantisation tables"] >= 0.95
    assert any("Metadata alone" in flag for flag in found.flags)
    for seed in range(2):
        assert audit(equalise_set(given), seed=seed).metadata_auc <= LIMIT
