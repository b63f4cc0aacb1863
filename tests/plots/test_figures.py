"""Figures are opened and read back, not only drawn."""

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pymupdf
import pytest
from made_up_results import make_cnn, make_level, make_report, make_scores
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dna_probe import plots
from dna_probe.errors import ArtefactError, DataError, DnaProbeError
from dna_probe.plots import style
from dna_probe.plots.attention_shift_figure import shown_layers
from dna_probe.plots.depth_panels import depth_name, power_text, scale_power, short_label
from dna_probe.truncation import truncate

REPORTS = {
    "one layer": lambda: make_report(1, [True]),
    "cnn of 3, one-row map": lambda: make_cnn(3, one_row=True),
    "cnn of 4": make_cnn,
    "cnn of 5": lambda: make_cnn(5),
    "12 blocks": make_report,
    "24 blocks, one by energy": lambda: make_report(24, energy=(0,)),
    "40 blocks": lambda: make_report(40),
    "40 blocks, all taken": lambda: make_report(40, [True] * 40, rule="all"),
    "no difference, none taken": lambda: make_report(12, [False] * 12, rule="intersection", zero=True),
    "small numbers": lambda: make_report(12, scale=1e-3),
    "large numbers": lambda: make_report(12, scale=1e4),
    "level spread, tiny difference": make_level,
    "wide maps": lambda: make_report(6, shapes=[(4, 40)] * 6),
}
SCORES = {
    "scores alone": make_scores,
    "scores without resamples": lambda: make_scores(draws=0),
    "knee": lambda: truncate(make_scores(), "knee"),
    "cumulative knee": lambda: truncate(make_scores()),
    "cumulative knee per layer": lambda: truncate(make_scores(), scope="layer"),
    "flat": lambda: truncate(make_scores(kind="flat")),
    "zero": lambda: truncate(make_scores(kind="zero")),
    "line": lambda: truncate(make_scores(kind="line"), "knee"),
    "fdr": lambda: truncate(make_scores(), cut="fdr"),
    "fdr keeps none": lambda: truncate(make_scores(), cut="fdr", alpha=1e-30),
    "top 5": lambda: truncate(make_scores(), cut="top_k", k=5),
    "top 120": lambda: truncate(make_scores(), cut="top_k", k=120),
    "top 350": lambda: truncate(make_scores(), cut="top_k", k=350),
    "24 layers": lambda: truncate(make_scores(range(24), 64)),
    "one unit": lambda: truncate(make_scores((3,), 1)),
}
ALL = [
    *(pytest.param(plots.attention_shift, make, id=f"attention-shift, {name}") for name, make in REPORTS.items()),
    *(pytest.param(plots.layers, make, id=f"layers, {name}") for name, make in REPORTS.items() if "blocks" not in name),
    *(pytest.param(plots.scores, make, id=f"scores, {name}") for name, make in SCORES.items()),
]
ONE_OF_EACH = [(plots.attention_shift, make_report), (plots.layers, make_report), (plots.scores, SCORES["knee"])]
EACH = pytest.mark.parametrize(("draw", "make"), ONE_OF_EACH, ids=["attention-shift", "layers", "scores"])


def written(figure):
    """Text -> its box in pixels, for everything that can be read in the figure."""
    figure.draw_without_rendering()
    shown = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and _reaches_paper(text, figure):
            shown[text] = text.get_window_extent()
    return shown


def _reaches_paper(text, figure):
    """Axes switched off keep invisible tick labels, and ticks outside the limits are not drawn."""
    for ax in _all_axes(figure):
        for axis in (ax.xaxis, ax.yaxis):
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if text in (tick.label1, tick.label2):
                    low, high = sorted(axis.get_view_interval())
                    return ax.axison and low - 1e-9 <= tick.get_loc() <= high + 1e-9
            if text in (axis.label, axis.get_offset_text()):
                return ax.axison
    return True


def _all_axes(figure):
    stack = list(figure.axes)
    for ax in stack:
        stack.extend(child for child in ax.child_axes if child not in stack)
    return stack


def assert_legible(figure):
    page, boxes = figure.bbox, written(figure)
    for text, box in boxes.items():
        inside = box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{text.get_text()!r} runs off the page"
        assert text.get_fontsize() == 7 and text.get_fontfamily() == [style.FONT], text.get_text()
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        # Boxes are of whole lines, ascenders and descenders included; a hair of overlap is no touch of ink.
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width < 2 or height < 2, f"{one.get_text()!r} covers {other.get_text()!r}"


def page_of(figure, folder):
    return pymupdf.open(plots.save(figure, folder / "figure.pdf", overwrite=True))[0]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("draw", "make"), ALL)
def test_every_word_is_on_the_page_and_none_covers_another(draw, make, columns):
    assert_legible(draw(make(), columns=columns)[0])


@EACH
@pytest.mark.parametrize("columns", [1, 2])
def test_a_pdf_has_the_width_of_its_columns_and_embedded_truetype(draw, make, columns, tmp_path):
    page = page_of(draw(make(), columns=columns)[0], tmp_path)
    assert page.rect.width / 72 == pytest.approx(style.COLUMN_INCHES[columns], abs=0.005)
    fonts = page.get_fonts()
    assert fonts
    for _, extension, kind, name, *_ in fonts:
        assert extension == "ttf" and kind in ("Type0", "TrueType"), (kind, name)
        assert "DejaVuSans" in name


def test_what_is_written_on_the_attention_shift(tmp_path):
    text = page_of(plots.attention_shift(make_report(24, energy=(0,)))[0], tmp_path).get_text()
    for word in ("real", "fake", "block", "Divergence", "Entropy shift (nats)", "Distance shift (patches)", "Spread"):
        assert word in text
    assert "taken (transition)" in text and "shuffled labels, 95 %" in text and "energy" in text
    assert "hook_resid_post" not in text


def test_what_is_written_on_the_layers_and_the_scores(tmp_path):
    text = page_of(plots.layers(make_cnn())[0], tmp_path).get_text()
    assert all(word in text for word in ("Cosine shift", "Normalised shift", "Fisher criterion", "Probe AUC", "stage"))
    units = truncate(make_scores())
    text = page_of(plots.scores(units)[0], tmp_path).get_text()
    assert f"{len(units)} of 384 units kept" in text and "knee" in text and "kept in each block" in text
    assert f"{units.spread[0]} to {units.spread[2]} over resamples" in text


def test_a_cut_without_a_knee_does_not_claim_one(tmp_path):
    text = page_of(plots.scores(truncate(make_scores(kind="flat")))[0], tmp_path).get_text()
    assert "no knee" in text and "\nknee\n" not in text
    text = page_of(plots.scores(truncate(make_scores(), cut="fdr", alpha=1e-30))[0], tmp_path).get_text()
    assert "none of 384 units kept" in text


def test_scores_alone_show_no_cut(tmp_path):
    figure, ax = plots.scores(make_scores())
    text = page_of(figure, tmp_path).get_text()
    assert "384 units by triadic" in text and "kept" not in text and not ax.child_axes


@EACH
def test_a_png_is_not_blank_and_an_svg_keeps_its_text(draw, make, tmp_path):
    figure, _ = draw(make())
    with Image.open(plots.save(figure, tmp_path / "figure.PNG")) as image:
        assert image.size[0] == round(figure.get_figwidth() * 600)
        assert np.asarray(image.convert("L")).std() > 10
    assert "<text" in plots.save(figure, tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_the_same_result_gives_the_same_bytes(suffix, tmp_path):
    files = [plots.save(plots.layers(make_report())[0], tmp_path / f"{i}.{suffix}") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@EACH
def test_the_callers_settings_are_neither_used_nor_changed(draw, make, tmp_path):
    mine = {
        "font.size": 21,
        "axes.facecolor": "black",
        "pdf.fonttype": 3,
        "savefig.bbox": "tight",
        "lines.linewidth": 9,
    }
    plain = plots.save(draw(make())[0], tmp_path / "plain.pdf").read_bytes()
    with matplotlib.rc_context(mine):
        before = dict(matplotlib.rcParams)
        figure, _ = draw(make())
        ours = plots.save(figure, tmp_path / "ours.pdf").read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert ours == plain


@EACH
def test_the_result_is_left_as_it_was(draw, make):
    result = make()
    whole = result.scores if hasattr(result, "scores") else result
    before = copy.deepcopy(whole.to_json())
    draw(result)
    assert whole.to_json() == before


def test_pyplot_and_torch_are_never_touched():
    code = (
        "import sys, dna_probe.plots as plots\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from made_up_results import make_report\n"
        "plots.save(plots.attention_shift(make_report())[0], sys.argv[2])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        here = str(pathlib.Path(__file__).parent)
        subprocess.run(
            [sys.executable, "-c", code, here, f"{folder}/a.pdf"], check=True, cwd=pathlib.Path(here).parents[1]
        )


MODULES = ["attention_shift_figure", "layers_figure", "scores_figure", "saving", "run_results", "style"]


@pytest.mark.parametrize("order", [MODULES, MODULES[::-1]], ids=["forwards", "backwards"])
def test_no_import_order_hides_a_function_behind_a_module(order):
    imports = "; ".join(f"import dna_probe.plots.{name}" for name in order)
    check = "import dna_probe.plots as p; assert all(callable(getattr(p, n)) for n in p.__all__ if n != 'FIGURES')"
    subprocess.run([sys.executable, "-c", f"{imports}; {check}"], check=True)


def test_no_module_of_the_package_has_the_name_of_a_function():
    from pkgutil import iter_modules

    assert not {module.name for module in iter_modules(plots.__path__)} & set(plots.__all__)


def test_figures_by_name_draw_what_the_functions_draw():
    assert {name: figure.reads for name, figure in plots.FIGURES.items()} == {
        "attention-shift": "layers.json",
        "layers": "layers.json",
        "scores": "scores.json",
        "audit": "audit.json",
        "few-shot": "results.json",
        "generators": "results.json",
        "robustness": "results.json",
        "reliability": "results.json",
        "roc": "results.json",
        "masking": "verification.json",
        "stability": "stability.json",
        "units": "selectivity.json",
    }
    figure, axes = plots.FIGURES["layers"](make_report(), columns=2)
    assert isinstance(figure, Figure) and [ax.get_label() for ax in axes] == [
        "cosine_shift",
        "normalised_shift",
        "fisher",
        "probe_auc",
    ]


# Drawing into the caller's own figure


@EACH
@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
def test_ax_is_drawn_into_and_nothing_leaves_its_place(draw, make, layout):
    figure = Figure(figsize=(12, 10), layout=layout)
    grid = figure.subplots(2, 2)
    result, axes = draw(make(), ax=grid[0, 1])
    assert result is figure
    figure.draw_without_rendering()
    drawn = [axes] if draw is plots.scores else list(axes)
    assert len(figure.axes) == 4
    home = grid[0, 1].get_window_extent()
    for ax in drawn:
        box = ax.get_window_extent()
        assert box.x0 >= home.x0 - 1 and box.x1 <= home.x1 + 1 and box.y0 >= home.y0 - 1 and box.y1 <= home.y1 + 1
    others = (grid[0, 0], grid[1, 0], grid[1, 1])
    assert all(other.axison and not other.child_axes for other in others)
    for other in others:
        other.remove()
    assert_legible(figure)


@pytest.mark.parametrize("where", ["add_axes", "subfigure", "inset"])
@EACH
def test_ax_may_be_any_axes(draw, make, where):
    figure = Figure(figsize=(9, 7))
    if where == "add_axes":
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    elif where == "subfigure":
        ax = figure.subfigures(1, 2)[1].add_subplot()
    else:
        ax = figure.add_subplot().inset_axes((0.1, 0.1, 0.8, 0.8))
    assert draw(make(), ax=ax)[0] is figure
    if where == "add_axes":
        assert_legible(figure)
    figure.draw_without_rendering()


@pytest.mark.parametrize("size", [(3.35, 3.4), (4, 6), (6, 3.3), (6.5, 2.6), (7, 5)])
@pytest.mark.parametrize("make", [make_report, make_cnn, lambda: make_report(40)])
def test_a_panel_fits_places_of_many_sizes(make, size):
    ax = Figure(figsize=size).add_axes((0, 0, 1, 1))
    assert_legible(plots.attention_shift(make(), ax=ax)[0])
    ax = Figure(figsize=size).add_axes((0, 0, 1, 1))
    assert_legible(plots.layers(make(), ax=ax)[0])


@pytest.mark.parametrize("draw", [plots.attention_shift, plots.layers])
@pytest.mark.parametrize("size", [(1, 1), (6, 0.5), (1, 6)])
def test_too_small_an_ax_is_refused_before_anything_is_drawn(draw, size):
    ax = Figure(figsize=size).add_axes((0, 0, 1, 1))
    with pytest.raises(DataError, match=r"is too small for the figure .* inches and needs .* leave ax out"):
        draw(make_report(), ax=ax)
    assert ax.axison and not ax.child_axes


def test_the_size_of_any_axes_is_known():
    figure = Figure(figsize=(8, 4))
    parent = figure.subfigures(1, 2)[1]
    ax = parent.add_axes((0, 0, 0.5, 0.5))
    assert style.inches(ax) == pytest.approx((2, 2))
    assert style.inches(ax.inset_axes((0, 0, 0.5, 1))) == pytest.approx((1, 2))


def test_a_narrow_ax_shows_fewer_layers():
    ax = Figure(figsize=(3.5, 4)).add_axes((0, 0, 1, 1))
    _, axes = plots.attention_shift(make_report(24), ax=ax)
    assert axes[:-4].reshape(3, -1).shape[1] <= 6


# What is shown


def test_maps_are_multiples_of_uniform_and_the_difference_has_one_symmetric_scale():
    report = make_report()
    _, axes = plots.attention_shift(report)
    real, fake, difference = axes[:-4].reshape(3, -1)
    assert len(real) == 12
    for layer in range(12):
        r, f, d = (np.asarray(row[layer].images[0].get_array()) for row in (real, fake, difference))
        np.testing.assert_allclose(r, report.maps["real"][layer] * 196)
        np.testing.assert_allclose(d, f - r)
        assert real[layer].images[0].get_clim() == fake[layer].images[0].get_clim() == (0, max(r.max(), f.max()))
    limits = {ax.images[0].get_clim() for ax in difference}
    (low, high), *rest = limits
    assert not rest and low == -high
    assert high == pytest.approx(max(np.abs(np.asarray(ax.images[0].get_array())).max() for ax in difference))


@pytest.mark.parametrize("signed", ["entropy_shift", "attention_js"])
def test_a_curve_carries_value_interval_and_null(signed):
    report = make_report()
    _, axes = plots.attention_shift(report)
    ax = next(ax for ax in axes if ax.get_label() == signed)
    lines = [line.get_ydata() for line in ax.lines]
    curve = report.curves[signed]
    for data, wanted in ((curve.value, True), (curve.null, True), (-curve.null, signed == "entropy_shift")):
        assert any(len(line) == 12 and np.array_equal(line, data) for line in lines) == wanted
    # The interval, and one band for the one run of layers taken.
    assert len(ax.collections) == 1 and len(ax.patches) == 1
    low, high = report.taken.index(True) - 0.5, 11.5 - report.taken[::-1].index(True)
    assert ax.patches[0].get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([low, high])


@pytest.mark.parametrize(
    ("depth", "taken", "room", "shown"),
    [
        (4, [2], 12, [0, 1, 2, 3]),
        (24, [], 3, [0, 11, 23]),
        (24, [10, 11], 4, [0, 10, 11, 23]),
        (24, [5, 6, 7], 3, [5, 6, 7]),
        (40, list(range(40)), 3, [0, 20, 39]),
        (8, [3], 1, [3]),
    ],
)
def test_layers_shown(depth, taken, room, shown):
    assert shown_layers([i in taken for i in range(depth)], room) == shown


@pytest.mark.parametrize("depth", [13, 24, 40])
@pytest.mark.parametrize("many", [0, 1, 5, 12, 13, 30])
def test_layers_shown_fill_the_room_with_taken_ones_first(depth, many):
    many = min(many, depth)
    start = (depth - many) // 2
    taken = [start <= i < start + many for i in range(depth)]
    shown = shown_layers(taken, 12)
    assert shown == sorted(set(shown)) and len(shown) == 12
    if many <= 12:
        assert {i for i in range(depth) if taken[i]} <= set(shown)
    else:
        assert {start, start + many - 1} <= set(shown)


def test_kept_units_per_layer_are_counted():
    units = truncate(make_scores())
    _, ax = plots.scores(units)
    (inset,) = ax.child_axes
    counts = [bar.get_height() for bar in inset.patches]
    assert counts == [(units.mask & (units.scores.layer == layer)).sum() for layer in (5, 6, 7)]
    assert sum(counts) == len(units)


@pytest.mark.parametrize("spread", [(24, 30, 35), (30, 39, 60), (50, 60, 70)])
def test_the_range_of_the_cut_is_not_stretched_to_the_cut(spread):
    _, ax = plots.scores(replace(truncate(make_scores()), spread=spread))
    (line,) = [line for line in ax.lines if line.get_label() == "range of the cut"]
    assert list(line.get_xdata()) == [spread[0], spread[2]]


def test_resampled_curves_share_the_scale_on_which_the_knee_is_found():
    scores = make_scores()
    inflated = replace(scores, resamples=scores.resamples * 50)
    bands = [plots.scores(s)[1].collections[0].get_paths()[0].vertices for s in (scores, inflated)]
    np.testing.assert_allclose(*bands)
    assert bands[0][:, 1].max() <= 1


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ("blocks.7.hook_resid_post", "7"),
        ("stages.2.hook_out", "2"),
        ("features.denseblock12", "features.…"),
        ("neck", "neck"),
    ],
)
def test_short_labels(site, label):
    assert short_label(site) == label


def test_what_a_layer_is_called():
    assert depth_name(["blocks.0.a", "blocks.1.a"]) == "block"
    assert depth_name(["stages.0.a"]) == "stage"
    assert depth_name(["blocks.0.a", "stages.0.a"]) == depth_name(["odd"]) == "layer"


@pytest.mark.parametrize(
    ("largest", "power"), [(0, 0), (0.5, 0), (0.05, -3), (4e-5, -6), (999, 0), (1000, 3), (2e7, 6)]
)
def test_small_and_large_numbers_leave_their_power_to_the_title(largest, power):
    assert scale_power(np.array([0, -largest])) == power


def test_powers_are_written_without_mathematics():
    assert power_text(-12) == "10⁻¹²"


# Grey


def luminance(colour):
    """Relative luminance as in WCAG, 0 to 1."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_lines_differ_in_more_than_colour():
    _, axes = plots.layers(make_report())
    shapes = set()
    for line in axes[0].lines:
        shapes.add((line.get_linestyle(), line.get_marker(), line.get_markerfacecolor() == "white"))
    # Value, null, layers not taken (open) and taken (filled).
    assert len(shapes) == 4


def test_shades_stand_apart_in_grey():
    tints = [style.BLUE_TINT, style.TAKEN_TINT, "white"]
    for one, other in itertools.combinations(tints, 2):
        assert abs(luminance(one) - luminance(other)) > 0.1
    for line in (style.BLUE, style.GREY, style.VERMILLION, style.INK):
        assert all(
            (luminance(tint) + 0.05) / (luminance(line) + 0.05) > 2 for tint in (style.BLUE_TINT, style.TAKEN_TINT)
        )


@pytest.mark.parametrize("name", ["difference", "sequential"])
def test_colour_maps_get_lighter_all_the_way(name):
    colours = style.difference_map() if name == "difference" else matplotlib.colormaps[style.SEQUENTIAL]
    shades = [luminance(colours(x)[:3]) for x in np.linspace(0, 1, 64)]
    assert (np.diff(shades) > 0).all()


def test_no_difference_is_neutral_grey():
    red, green, blue, _ = style.difference_map()(0.5)
    assert red == pytest.approx(green, abs=0.01) and green == pytest.approx(blue, abs=0.01)


# Refusals and files


@pytest.mark.parametrize(
    ("draw", "wanted"), [(plots.attention_shift, "LayerReport"), (plots.scores, "UnitScores or UnitSet")]
)
def test_another_result_is_refused(draw, wanted):
    with pytest.raises(DataError, match=f"cannot show a list. It shows {wanted}"):
        draw([1, 2])


@EACH
def test_a_page_has_two_columns(draw, make):
    with pytest.raises(DataError, match="Use columns=1 or columns=2"):
        draw(make(), columns=3)


def test_saving_refuses_what_exists_and_unknown_formats(tmp_path):
    figure, _ = plots.scores(make_scores())
    path = plots.save(figure, tmp_path / "a.pdf")
    path.write_bytes(b"mine")
    with pytest.raises(ArtefactError, match=r"a\.pdf exists"):
        plots.save(figure, path)
    assert path.read_bytes() == b"mine"
    assert plots.save(figure, path, overwrite=True).read_bytes().startswith(b"%PDF")
    for name in ("a.tiff", "a"):
        with pytest.raises(DataError, match=r"End it in \.pdf, \.svg, \.png"):
            plots.save(figure, tmp_path / name)
    with pytest.raises(DataError, match="could not be written"):
        plots.save(figure, tmp_path / "no" / "a.pdf")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pdf"]


def test_results_are_found_in_the_folder_of_a_run(tmp_path):
    assert plots.read_result("layers", tmp_path) is None
    report, scores = make_report(), make_scores()
    (tmp_path / "layers.json").write_text(json.dumps(report.to_json()))
    (tmp_path / "scores.json").write_text(json.dumps(scores.to_json()))
    assert plots.read_result("attention-shift", tmp_path).layers == report.layers
    assert np.array_equal(plots.read_result("scores", tmp_path).score, scores.score)
    units = truncate(scores)
    keys = ("backbone", "preprocessing", "equalisation", "units", "anchor", "arrays_sha256", "skipped", "provenance")
    manifest = dict.fromkeys(keys) | {"schema": "dna_probe.detector/1", "unit_set": units.to_json()}
    detector = tmp_path / "demo" / "detector"
    detector.mkdir(parents=True)
    (detector / "scores.json").write_text(json.dumps(scores.to_json()))
    (detector / "manifest.json").write_text(json.dumps(manifest))
    found = plots.read_result("scores", detector.parent)
    assert np.array_equal(found.mask, units.mask) and found.spread == units.spread


def test_a_damaged_or_missing_run_says_so(tmp_path):
    with pytest.raises(DnaProbeError, match="Did you mean 'layers'"):
        plots.read_result("layer", tmp_path)
    with pytest.raises(ArtefactError, match="is not a folder"):
        plots.read_result("layers", tmp_path / "none")
    for content in ("{", "[]", '{"schema": "dna_probe.scores/1"}', '{"schema": "dna_probe.layers/1", "layers": []}'):
        (tmp_path / "layers.json").write_text(content)
        with pytest.raises(ArtefactError, match="is damaged"):
            plots.read_result("layers", tmp_path)
