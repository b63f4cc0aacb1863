import io

import numpy as np
import pytest
from PIL import Image

from dna_probe.errors import DnaProbeError
from dna_probe.images import processed
from dna_probe.images.degradations import DEGRADATIONS, available_degradations, degrade
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.processed import DEFAULT_VIEWS, VIEWS, ProcessedImage, process, require_views
from dna_probe.images.reading import UnreadableImage, content_hash, read_image
from dna_probe.images.sets import ImageSet
from dna_probe.images.sources import is_stored

SMALL = Preprocessing(input_size=(56, 56), crop_pct=0.875)  # crops from a short side of 64


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(source):
    return np.asarray(read_image(source))


def view_of(image, view="blur", side=64, name="one"):
    return ProcessedImage(image, view, side, name)


@pytest.fixture
def bag(tmp_path):
    for i in range(4):
        noise(90, 80, i).save(tmp_path / f"{i}.png")
    return ImageSet(
        tuple(tmp_path / f"{i}.png" for i in range(4)),
        [0, 0, 1, 1],
        ("real", "real", "g", "h"),
        tuple("wxyz"),
        ("train",) * 4,
        ("",) * 3 + ("2024-05-01",),
        origin="bag",
        layout="plain",
        skipped=(("bad.png", "empty file (0 bytes)"),),
    )


class TestSize:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [((128, 200), (64, 100)), ((200, 128), (100, 64)), ((64, 90), (64, 90)), ((40, 90), (40, 90))],
    )
    def test_the_short_side_is_brought_down_to_the_one_asked_for_and_never_up(self, size, expected):
        assert read_image(view_of(noise(*size))).size == expected

    def test_a_large_image_is_shrunk_first_and_then_processed(self):
        image = noise(160, 128)
        by_hand = degrade(image.resize((80, 64), Image.Resampling.BICUBIC), *VIEWS["blur"])
        assert np.array_equal(seen(view_of(image)), np.asarray(by_hand))

    def test_a_set_is_shrunk_to_what_the_backbone_crops_from(self, bag):
        assert {image.side for image in process(bag, "blur", SMALL).images} == {64}
        assert {image.side for image in process(bag, "blur", Preprocessing((32, 48), 1.0)).images} == {32}

    def test_a_strip_keeps_a_side_of_at_least_one_pixel(self):
        assert read_image(view_of(noise(8, 300), side=8)).size == (8, 300)
        assert read_image(view_of(noise(16, 300), side=8)).size == (8, 150)


class TestViews:
    @pytest.mark.parametrize("view", VIEWS)
    def test_each_is_the_degradation_that_it_names(self, view):
        name, severity = VIEWS[view]
        if name not in available_degradations():
            pytest.skip(f"this Pillow cannot make {view}")
        image = noise(70, 64)
        seed = int(content_hash(image)[:8], 16)
        assert np.array_equal(seen(view_of(image, view)), np.asarray(degrade(image, name, severity, seed=seed)))

    @pytest.mark.parametrize("view", VIEWS)
    def test_the_same_bytes_every_time_and_other_content_than_the_image(self, view):
        if VIEWS[view][0] not in available_degradations():
            pytest.skip(f"this Pillow cannot make {view}")
        image = noise(70, 64)
        once, again = view_of(image, view), view_of(image.copy(), view)
        assert once.read_bytes() == again.read_bytes() and content_hash(once) == content_hash(again)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert content_hash(once) not in (content_hash(image), content_hash(buffer.getvalue()))
        assert content_hash(once) not in {content_hash(view_of(image, other)) for other in VIEWS if other != view}

    def test_an_image_has_the_same_view_in_every_set(self):
        one, other = noise(64, 64), noise(64, 64, seed=1)
        first, second = ImageSet((one,), [0]), ImageSet((other, one), [0, 1])
        for view in ("noise", "blur"):
            alone, beside = process(first, view, SMALL), process(second, view, SMALL)
            assert alone.images[0].read_bytes() == beside.images[1].read_bytes() != beside.images[0].read_bytes()

    def test_every_view_exists_as_a_degradation_of_that_severity(self):
        for name, severity in VIEWS.values():
            assert severity < len(DEGRADATIONS[name].severities)
        assert set(DEFAULT_VIEWS) <= set(VIEWS)


class TestSet:
    def test_it_keeps_what_belongs_to_the_images(self, bag):
        made = process(bag, "jpeg", SMALL)
        assert made.names == bag.names and made.labels.tolist() == bag.labels.tolist()
        for field in ("generators", "groups", "splits", "dates", "origin", "layout"):
            assert getattr(made, field) == getattr(bag, field)
        assert all(is_stored(image) for image in made.images) and made.fingerprint() != bag.fingerprint()

    def test_what_was_left_out_before_is_not_told_twice(self, bag):
        assert bag.skipped and process(bag, "blur", SMALL).skipped == ()

    def test_images_in_memory_keep_the_names_of_their_places(self):
        made = process(ImageSet((noise(64, 64), noise(64, 64, 1)), [0, 1]), "blur", SMALL)
        assert made.names == ("images[0]", "images[1]") == made.subset([0, 1]).names
        assert made.subset([1]).names == ("images[1]",)

    def test_a_view_of_a_view(self, bag):
        twice = process(process(bag, "blur", SMALL), "jpeg", SMALL)
        assert twice.names == bag.names
        assert np.array_equal(
            seen(twice.images[2]), np.asarray(degrade(read_image(process(bag, "blur", SMALL).images[2]), "jpeg", 3))
        )


class TestRefusals:
    def test_an_image_that_cannot_be_read_says_so_under_its_own_name(self, tmp_path):
        for content, reason in ((b"no image", "not an image"), (b"", "empty file")):
            (tmp_path / "bad.png").write_bytes(content)
            one = view_of(tmp_path / "bad.png", name="bad one")
            with pytest.raises(UnreadableImage, match=f"Cannot read bad one: .*{reason}"):
                one.read_bytes()
            with pytest.raises(UnreadableImage, match="bad one"):
                read_image(one)
        with pytest.raises(UnreadableImage, match=r"gone\.png"):
            view_of(tmp_path / "gone.png", name="gone.png").read_bytes()

    def test_a_codec_that_fails_is_the_fault_of_that_image(self, monkeypatch):
        def fail(*arguments):
            raise ValueError("image is too large for this codec")

        monkeypatch.setattr(type(DEGRADATIONS["jpeg"]), "apply", fail)
        with pytest.raises(UnreadableImage, match="Cannot read one: image is too large"):
            view_of(noise(64, 64), "jpeg").read_bytes()

    def test_an_unknown_view_is_told_with_near_matches(self):
        require_views([])
        require_views(DEFAULT_VIEWS)
        with pytest.raises(DnaProbeError, match=r"^Unknown view 'blurr'\. Did you mean 'blur'\?$"):
            require_views(["jpeg", "blurr"])
        with pytest.raises(DnaProbeError, match=r"Unknown view 'sepia'\. Known: blur, resize, jpeg"):
            require_views(["sepia"])

    def test_a_view_that_this_pillow_cannot_make_is_unknown_here(self, monkeypatch):
        left = {name: one for name, one in available_degradations().items() if name != "webp"}
        monkeypatch.setattr(processed, "available_degradations", lambda: left)
        with pytest.raises(DnaProbeError, match="Unknown view 'webp'") as caught:
            require_views(["webp"])
        assert "Did you mean 'webp'" not in str(caught.value)
