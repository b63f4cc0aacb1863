import json

import numpy as np
import pymupdf
import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_figures import assert_legible

from dna_probe.errors import DataError
from dna_probe.plots import FIGURES, save, style
from dna_probe.plots.units_figure import map_order, shown_units, units
from dna_probe.selectivity import Selectivity
from dna_probe.tuning import SWEEPS, Sweep, Tuning

USUAL = tuple(SWEEPS.values())


def make(robust=6, fragile=20, unclear=10, sweeps=USUAL, name="blocks.7.hook_resid_post", seed=0):
    """Robust units keep their contrast, fragile ones lose it, unclear ones have none."""
    rng = np.random.default_rng(seed)
    labels = ("robust",) * robust + ("fragile",) * fragile + ("unclear",) * unclear
    count = len(labels)
    contrast = np.array([{"robust": 1.2, "fragile": -1.0, "unclear": 0.1}[label] for label in labels])
    contrast = contrast * rng.uniform(0.8, 1.2, count)
    left = np.where(np.array(labels) == "fragile", -0.4, 0.8)
    tunings = []
    for sweep in sweeps:
        ramp = np.linspace(0, 1, len(sweep.values) + 1)[1:, None]
        shift = np.stack([ramp * rng.normal(0, 0.8, count), ramp * rng.normal(0, 0.8, count)])
        half = 0.1 + 0.2 * ramp * np.ones((2, 1, count))
        level = rng.beta(1, 6, count)
        at = contrast * (1 - ramp * (1 - left))
        auc = 0.5 + 0.2 * at / contrast
        shares = level, 1 - level, 0 * level, (1 - level) / 4
        tunings.append(Tuning(sweep, shift, shift - half, shift + half, at, auc, *shares))
    return Selectivity(
        origin="made up",
        units=tuple(f"{name}[{i}]" for i in range(count)),
        labels=labels,
        reasons=("made up",) * count,
        contrast=contrast,
        p_value=np.where(np.abs(contrast) > 0.5, 1e-4, 0.6),
        auc=0.5 + 0.2 * np.abs(contrast),
        generation=contrast**2 / (contrast**2 + 4),
        generator=rng.beta(1, 8, count),
        response=np.stack([-contrast / 2, contrast / 2]),
        tunings=tuple(tunings),
        counts={"real": 20, "sdxl": 20},
    )


LONG = "blocks.11.mlp.hook_post_mean_of_a_model_with_long_names"
CASES = {
    "usual": make,
    "none robust": lambda: make(robust=0),
    "all robust": lambda: make(fragile=0, unclear=0),
    "one of each among many": lambda: make(1, 1, 400),
    "many robust, few others": lambda: make(400, 1, 1),
    "one unit": lambda: make(1, 0, 0),
    "one sweep": lambda: make(sweeps=(SWEEPS["blur"],)),
    "many levels": lambda: make(sweeps=(Sweep("jpeg", "quality", tuple(range(95, 5, -6))), SWEEPS["noise"])),
    "long names": lambda: make(name=LONG, sweeps=(Sweep("chroma-halving jpeg", "quality", (90, 50), "jpeg"),)),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@EACH
@pytest.mark.parametrize("columns", [1, 2])
def test_every_word_is_on_the_page_and_none_covers_another(case, columns):
    figure, panels = units(case(), columns=columns)
    assert panels[0].get_label() == "shares"
    assert_legible(figure)


def test_what_is_written(tmp_path):
    figure, _ = units(make())
    page = pymupdf.open(save(figure, tmp_path / "units.pdf"))[0]
    text = page.get_text()
    assert page.rect.width / 72 == pytest.approx(style.COLUMN_INCHES[2], abs=0.005)
    for word in ("robust", "fragile", "unclear", "real / fake", "generator", *SWEEPS, "quality", "scale", "sigma"):
        assert word in text, word
    assert "share of variance" in text and "untouched" in text and "blocks.7.hook_resid_post[" in text


def test_the_map_and_the_curves_show_the_result():
    result = make()
    _, panels = units(result, top=2)
    order = map_order(result)
    shown = np.asarray(panels[0].images[0].get_array())
    np.testing.assert_allclose(shown[:, 0], result.generation[order])
    np.testing.assert_allclose(shown[:, 4], result.tunings[2].level[order])
    unit = shown_units(result, 2)[1]
    panel = panels[1 + len(SWEEPS)]
    assert panel.get_label() == f"jpeg {result.units[unit]}"
    real, fake = (line.get_ydata() for line in panel.lines[1:])
    np.testing.assert_allclose(real[1:] - real[0], result.tunings[0].shift[0, :, unit])
    assert fake[0] - real[0] == pytest.approx(result.contrast[unit])


def test_robust_and_fragile_units_are_shown_side_by_side():
    label = make().labels
    assert [label[i] for i in shown_units(make(), 4)] == ["robust", "robust", "fragile", "fragile"]
    assert len(shown_units(make(robust=0, fragile=1, unclear=2), 4)) == 3
    assert [make(robust=1).labels[i] for i in shown_units(make(robust=1), 4)].count("fragile") == 3


def test_a_png_is_not_blank_and_a_stored_result_draws_the_same(tmp_path):
    result = make()
    stored = Selectivity.from_json(json.loads(json.dumps(result.to_json())))
    files = [save(FIGURES["units"](one)[0], tmp_path / f"{i}.png") for i, one in enumerate((result, stored))]
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert image.width == round(style.COLUMN_INCHES[2] * 600) and np.asarray(image.convert("L")).std() > 10


def test_it_fits_into_an_axes_of_the_caller():
    figure = Figure(figsize=(9, 6))
    drawn, _ = units(make(), ax=figure.add_axes((0.05, 0.05, 0.9, 0.9)))
    assert drawn is figure
    assert_legible(figure)
    small = Figure(figsize=(2, 1)).add_subplot()
    with pytest.raises(DataError, match="too small for the figure 'units'"):
        units(make(), ax=small)
    assert small.axison and not small.child_axes


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(DataError, match=r"cannot show a str.* shows Selectivity"):
        units("selectivity")
    with pytest.raises(DataError, match="columns"):
        units(make(), columns=3)
    with pytest.raises(DataError, match="top = 0 is not a number of units"):
        units(make(), top=0)
    many = tuple(Sweep(f"jpeg {i}", "quality", (90, 50), "jpeg") for i in range(9))
    with pytest.raises(DataError, match="too small"):
        units(make(sweeps=many), columns=1)
