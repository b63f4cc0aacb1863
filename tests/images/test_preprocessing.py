"""The pixels must be those of timm's evaluation transform, number for number."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dna_probe.errors import DataError
from dna_probe.images.preprocessing import Preprocessing
from dna_probe.images.reading import UnreadableImage

CONFIGS = [
    {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bilinear"},
    {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic"},
    {"input_size": (3, 98, 98), "crop_pct": 1.0, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    {"input_size": (3, 64, 64), "crop_pct": 0.95, "interpolation": "lanczos"},
    {"input_size": (3, 64, 96), "crop_pct": 0.875, "interpolation": "bicubic"},
    {"input_size": (3, 64, 64), "crop_pct": 1.0, "crop_mode": "squash"},
    {"input_size": (3, 60, 80), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
    {"input_size": (3, 64, 64), "crop_pct": 1.0, "crop_mode": "border"},
    {"input_size": (3, 64, 96), "crop_pct": 0.9, "crop_mode": "border", "interpolation": "bilinear"},
    {},
]


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_timm(cfg, image):
    from timm.data import create_transform, resolve_data_config

    return create_transform(**resolve_data_config({}, pretrained_cfg=cfg or {"x": 1}), is_training=False)(image).numpy()


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
@pytest.mark.parametrize("size", [(300, 200), (201, 333), (256, 256), (50, 40), (97, 9)], ids=str)
def test_equals_timm(cfg, size):
    image = noise(*size)
    ours = Preprocessing.from_timm(cfg)(image)
    theirs = by_timm(cfg, image)
    assert ours.shape == theirs.shape and ours.dtype == np.float32 and ours.flags.c_contiguous
    assert np.abs(ours - theirs).max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(8, 120),
    height=st.integers(8, 120),
    rows=st.integers(8, 70),
    columns=st.integers(8, 70),
    crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 0.965, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_equals_timm_for_any_size(width, height, rows, columns, crop_pct, crop_mode, interpolation):
    cfg = {
        "input_size": (3, rows, columns),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
    }
    image = noise(width, height)
    assert np.abs(Preprocessing.from_timm(cfg)(image) - by_timm(cfg, image)).max() < 1e-5


def test_json_round_trip():
    import json

    one = Preprocessing((64, 96), 0.9, "border", "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_json(one.to_json()) == one
    assert Preprocessing.from_json(json.dumps(one.to_json())) == one
    assert json.loads(json.dumps(one.to_json())) == one.to_json()
    assert "crop_rounding" not in one.to_json()
    down = replace(one, crop_rounding="down")
    assert down.to_json()["crop_rounding"] == "down" and Preprocessing.from_json(down.to_json()) == down != one
    with pytest.raises(DataError, match="Did you mean 'crop_pct'"):
        Preprocessing.from_json({"crop_pc": 1.0})


def test_from_timm_takes_a_models_own_configuration():
    import timm
    from timm.data import resolve_model_data_config

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    one = Preprocessing.from_timm(model.pretrained_cfg)
    assert one == Preprocessing.from_timm(resolve_model_data_config(model))
    assert one.input_size == (224, 224) and one.crop_pct == 0.9 and one.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"input_size": (0, 10)}, "input_size"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_mode": "centre"}, "Did you mean 'center'"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"crop_rounding": "up"}, "Unknown crop rounding 'up'. Known: even, down"),
        ({"mean": (1, 2)}, "mean must be three numbers"),
        ({"std": (0, 1, 1)}, "std must be three numbers above 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(DataError, match=words):
        Preprocessing(**wrong)
    with pytest.raises(DataError, match="channels"):
        Preprocessing.from_timm({"input_size": (1, 28, 28)})


def test_an_endless_strip_is_refused_before_it_is_stretched():
    with pytest.raises(UnreadableImage, match="sides differ too much"):
        Preprocessing()(Image.new("RGB", (200_000, 8)), "strip.png")
