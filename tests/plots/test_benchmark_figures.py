"""Figures of a benchmark are opened and read back, not only drawn."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_results import METHODS, TRANSFORMS, make_benchmark, make_report
from matplotlib.figure import Figure
from test_figures import assert_legible, page_of

from dna_probe import plots
from dna_probe.errors import ArtefactError, DataError, DnaProbeError
from dna_probe.plots import method_lines, style

FIGURES = {
    "few-shot": plots.few_shot,
    "generators": plots.generators,
    "robustness": plots.robustness,
    "reliability": plots.reliability,
    "roc": plots.roc,
}
EACH = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
CURVES = [draw for name, draw in FIGURES.items() if name != "robustness"]
RESULTS = {
    "3 methods": lambda: make_benchmark(transforms=TRANSFORMS, shots=(10, 50)),
    "14 methods": lambda: make_benchmark(METHODS, transforms=TRANSFORMS, shots=(50,)),
    "one method": lambda: make_benchmark(("knn",), transforms={"jpeg": (95, 50)}),
    "methods of one's own": lambda: make_benchmark(
        ("dna", *(f"a-method-of-mine-{i}" for i in range(11))), transforms={"jpeg": (50,)}
    ),
    "every number of shots": lambda: make_benchmark(shots=(*range(1, 21), 500, 1000, "all"), transforms=TRANSFORMS),
    "all images alone": lambda: make_benchmark(shots=("all",), transforms={"jpeg": range(10, 100, 10)}),
    "one generator": lambda: make_benchmark(generators=("biggan",), transforms=TRANSFORMS),
    "25 generators": lambda: make_benchmark(
        METHODS,
        shots=(5,),
        generators=[f"a generator with a long name {i}" for i in range(25)],
        transforms={"a transform with a long name": ("a severity without a number", 2)},
    ),
    "seen generators alone": lambda: make_benchmark(sides=(True,), transforms=TRANSFORMS),
    "no better than chance": lambda: make_benchmark(METHODS[9:10], shots=(1, 2), transforms=TRANSFORMS),
}


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
@EACH
def test_every_word_is_on_the_page_and_none_covers_another(draw, make, columns):
    assert_legible(draw(make(), columns=columns)[0])


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("show", ["auc", "drop"])
def test_a_map_is_legible_for_either_value(show, columns):
    assert_legible(plots.robustness(RESULTS["3 methods"](), show=show, columns=columns)[0])


@pytest.mark.parametrize("columns", [1, 2])
def test_all_methods_may_have_calibration_curves(columns):
    assert_legible(plots.reliability(make_benchmark(METHODS), methods=METHODS, columns=columns)[0])


@EACH
def test_pages_have_their_width_and_bytes_do_not_change(draw, tmp_path):
    result = RESULTS["3 methods"]()
    before = copy.deepcopy(result.to_json())
    assert page_of(draw(result)[0], tmp_path).rect.width / 72 == pytest.approx(style.COLUMN_INCHES[1], abs=0.005)
    files = [plots.save(draw(result)[0], tmp_path / f"{i}.svg").read_bytes() for i in range(2)]
    assert files[0] == files[1] and b"<text" in files[0]
    assert result.to_json() == before


@EACH
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_ax_is_drawn_into_and_nothing_leaves_its_place(draw, layout):
    figure = Figure(figsize=(9, 9), layout=layout)
    grid = figure.subplots(2, 2)
    made, axes = draw(make_benchmark(transforms={"jpeg": (90, 50), "blur": (1, 2)}), ax=grid[0, 1])
    assert made is figure and len(figure.axes) == 4
    figure.draw_without_rendering()
    home = grid[0, 1].get_window_extent()
    for ax in np.ravel(axes):
        box = ax.get_window_extent()
        assert box.x0 >= home.x0 - 1 and box.x1 <= home.x1 + 1 and box.y0 >= home.y0 - 1 and box.y1 <= home.y1 + 1
    for other in (grid[0, 0], grid[1, 0], grid[1, 1]):
        assert other.axison and not other.child_axes
        other.remove()
    assert_legible(figure)


@EACH
def test_too_small_an_ax_is_refused_before_anything_is_drawn(draw):
    ax = Figure(figsize=(1, 1)).add_axes((0, 0, 1, 1))
    with pytest.raises(DataError, match=r"is too small for the figure .* leave ax out"):
        draw(RESULTS["3 methods"](), ax=ax)
    assert ax.axison and not ax.child_axes


def test_methods_differ_in_more_than_colour_and_controls_are_grey_and_dotted():
    looks = method_lines.looks(METHODS)
    assert len({(str(look.line), look.marker, look.filled) for look in looks.values()}) == len(METHODS)
    controls = {name for name, look in looks.items() if look.colour == style.GREY}
    assert controls == {"random-units", "random-weights", "metadata", "thumbnail"}
    assert all(looks[name].line == method_lines.DOTTED for name in controls)
    strongest = sorted(looks, key=lambda name: -looks[name].width)
    assert strongest[:2] == ["dna", "last-linear"]


def test_a_method_looks_the_same_in_every_company_and_a_new_one_like_none_beside_it():
    assert method_lines.looks(["rine"])["rine"] == method_lines.looks(METHODS)["rine"]
    looks = method_lines.looks(["dna", "rine", "mine", "another"])
    assert len(set(looks.values())) == 4


@EACH
def test_what_is_shown_is_named(draw, tmp_path):
    text = page_of(draw(make_benchmark(shots=(50,), transforms=TRANSFORMS))[0], tmp_path).get_text()
    assert "unseen generators" in text and "dna" in text
    if draw is not plots.robustness:
        assert "last-linear" in text
    if draw in (plots.few_shot, plots.generators, plots.roc):
        assert "metadata (control)" in text and "chance" in text


# What is shown


def test_few_shot_lines_and_bars_are_the_values_and_intervals():
    result = make_benchmark()
    _, ax = plots.few_shot(result)
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["all", "50", "20", "10", "5", "1"]
    for name in ("dna", "last-linear", "metadata"):
        aucs = [r["metrics"]["auc"] for r in result.summary if r["method"] == name and not r["seen"]]
        line = lines_of(ax)[name]
        np.testing.assert_allclose(line.get_ydata(), [auc["value"] for auc in aucs])
        bars = next(c for c in ax.collections if np.allclose([s[0, 0] for s in c.get_segments()], line.get_xdata()))
        drawn = [(s[0, 1], s[1, 1]) for s in bars.get_segments()]
        np.testing.assert_allclose(drawn, [(auc["low"], auc["high"]) for auc in aucs])
        # Beside each other, but nearer to their own tick than to any other.
        ticks = sorted(ax.get_xticks())
        for x, tick in zip(line.get_xdata(), ticks, strict=True):
            assert min(ticks, key=lambda t, x=x: abs(np.log(t / x))) == tick
    assert max(ax.get_xticks()) > 50


def test_either_side_can_be_asked_for():
    result = make_benchmark(shots=(50,))
    for seen in (False, True):
        _, ax = plots.few_shot(result, seen=seen)
        (row,) = [r for r in result.summary if r["method"] == "dna" and r["seen"] == seen]
        assert lines_of(ax)["dna"].get_ydata() == [row["metrics"]["auc"]["value"]]
    assert ax.get_title(loc="left") == "generators trained on"


def test_generators_stand_hardest_first_with_their_own_values():
    result = make_benchmark(shots=(10, 50))
    _, ax = plots.generators(result, shots=10)
    order = ["glide", "flux", "sdxl", "stylegan2", "midjourney"]
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"{name} (100)" for name in order]
    assert ax.yaxis_inverted()
    rows = {
        row["test_on"]: row["auc"]["value"]
        for row in result.by_generator
        if (row["method"], row["shots"], row["seen"]) == ("dna", 10, False)
    }
    line = lines_of(ax)["dna"]
    for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
        assert x == rows[order[round(y)]]
    assert ax.texts[0].get_text() == "unseen generators, 10 shots"


def test_methods_that_do_not_fit_on_a_page_are_left_out_in_words():
    figure, ax = plots.generators(RESULTS["25 generators"]())
    assert figure.get_figheight() < 10
    shown = [label for label in lines_of(ax) if label in METHODS]
    assert shown[:2] == ["dna", "last-linear"] and len(shown) < 14
    assert f"{len(shown)} of 14 methods" in ax.texts[0].get_text()


@pytest.mark.parametrize("show", ["auc", "drop"])
def test_the_map_holds_every_cell_and_frames_the_worst(show):
    result = make_benchmark(shots=(10, 50), transforms=TRANSFORMS)
    _, ax = plots.robustness(result, method="last-linear", show=show, shots=10)
    rows = [
        row
        for row in result.summary
        if (row["method"], row["shots"], row["seen"]) == ("last-linear", 10, False) and row["transform"]
    ]
    values = ax.images[0].get_array()
    assert values.shape == (len(TRANSFORMS), 5) and values.count() == len(rows)
    for row in rows:
        wanted = row["metrics"]["auc"]["value"] if show == "auc" else row["auc_drop"]
        assert values[list(TRANSFORMS).index(row["transform"]), row["level"] - 1] == wanted
    worst = min(rows, key=lambda row: row["metrics"]["auc"]["value"])
    (frame,) = ax.patches
    assert frame.get_xy() == (worst["level"] - 1.5, list(TRANSFORMS).index(worst["transform"]) - 0.5)
    written = [text.get_text() for text in ax.texts]
    assert "1280/80" in written and "mild" in written and "0.75" in written
    assert any(f"worst {worst['metrics']['auc']['value']:.2f} (jpeg 30)" in text for text in written)


def test_darker_cells_are_worse_for_either_value():
    result = make_benchmark(shots=(50,), transforms={"jpeg": (95, 75, 50)})
    for show in ("auc", "drop"):
        image = plots.robustness(result, show=show)[1].images[0]
        shades = image.to_rgba(image.get_array())[0, :, :3].sum(-1)
        assert (np.diff(shades) < 0).all()


def test_calibration_has_points_bins_and_its_error():
    result = make_benchmark()
    _, (above, below) = plots.reliability(result)
    row = next(r for r in result.reliability if (r["method"], r["shots"], r["seen"]) == ("dna", "all", False))
    np.testing.assert_allclose(lines_of(above)["dna"].get_xydata().T, [row["predicted"], row["observed"]])
    assert set(lines_of(above)) & set(METHODS) == {"dna", "last-linear"}
    strokes = below.collections[0].get_segments()
    np.testing.assert_allclose([stroke[0, 0] for stroke in strokes], row["predicted"])
    assert len(below.collections) == 2
    key = next(child for child in above.figure.axes[0].child_axes if child.get_label() == "key")
    assert f"dna, ECE {row['ece']:.3f}" in [text.get_text() for text in key.get_legend().get_texts()]


def test_bins_are_as_high_as_they_weigh():
    result = make_benchmark(("dna",), shots=(5,), sides=(False,))
    weight = np.linspace(0.5, 1.5, 15) / 15
    heavy = replace(result, reliability=[row | {"weight": weight.tolist()} for row in result.reliability])
    _, (_, below) = plots.reliability(heavy)
    heights = np.array([stroke[1, 1] - stroke[0, 1] for stroke in below.collections[0].get_segments()])
    np.testing.assert_allclose(heights / heights.max(), weight / weight.max())


def test_the_roc_spreads_out_few_false_alarms():
    result = make_benchmark()
    _, ax = plots.roc(result)
    assert ax.get_xscale() == "log" and ax.get_xlim() == (0.001, 1)
    assert {line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1} == {0.01, 0.05}
    np.testing.assert_array_equal(*lines_of(ax)["chance"].get_data())
    row = next(r for r in result.roc if (r["method"], r["shots"], r["seen"]) == ("dna", "all", False))
    np.testing.assert_allclose(lines_of(ax)["dna"].get_data(), [row["fpr"], row["tpr"]])
    # Bands of the two that matter; the control has none.
    assert len(ax.collections) == 2
    edges = [line.get_ydata() for line in ax.lines]
    assert any(np.array_equal(edge, row["low"]) for edge in edges)


def test_what_was_not_measured_is_left_blank():
    result = make_benchmark(("dna", "knn"), shots=(10, 50), sides=(False,), transforms={"jpeg": (90, 50)})
    none = {"value": None, "low": None, "high": None}
    gone = replace(
        result,
        summary=[
            row | {"metrics": row["metrics"] | {"auc": none}} if row["method"] == "knn" or row["level"] == 2 else row
            for row in result.summary
        ],
        by_generator=[row | {"auc": none} if row["method"] == "knn" else row for row in result.by_generator],
    )
    for draw in FIGURES.values():
        assert_legible(draw(gone)[0])
    assert np.isnan(lines_of(plots.few_shot(gone)[1])["knn"].get_ydata()).all()
    assert plots.robustness(gone)[1].images[0].get_array().count() == 1


# Refusals and files


@EACH
def test_another_result_and_other_widths_are_refused(draw):
    with pytest.raises(DataError, match=r"cannot show a LayerReport. It shows BenchmarkResult"):
        draw(make_report())
    with pytest.raises(DataError, match="Use columns=1 or columns=2"):
        draw(RESULTS["3 methods"](), columns=3)


def test_a_run_without_transforms_has_no_map():
    with pytest.raises(DataError, match=r"protocol 'few-shot' holds no transformed images. Run .* robustness"):
        plots.robustness(make_benchmark())


def test_a_map_without_a_single_value_is_refused():
    result = make_benchmark(("dna",), shots=(5,), transforms={"jpeg": (50,)})
    blank = [row | {"metrics": row["metrics"] | {"auc": {"value": None}}} for row in result.summary]
    with pytest.raises(DataError, match="holds no transformed images"):
        plots.robustness(replace(result, summary=blank))


@pytest.mark.parametrize("draw", CURVES)
def test_a_result_with_nothing_to_show_is_refused(draw):
    empty = replace(make_benchmark(), summary=[], by_generator=[], reliability=[], roc=[])
    with pytest.raises(DataError, match=r"has nothing to show. This run of the protocol 'few-shot' holds no "):
        draw(empty)
    with pytest.raises(DataError, match="has nothing to show"):
        draw(make_benchmark(sides=(False,)), seen=True)


@EACH
def test_what_was_not_measured_cannot_be_shown(draw):
    result = RESULTS["3 methods"]()
    option = {"method": "dnb"} if draw is plots.robustness else {"methods": ["dnb"]}
    with pytest.raises(DataError, match=r"Unknown method 'dnb'. Did you mean 'dna'"):
        draw(result, **option)
    if draw is not plots.few_shot:
        with pytest.raises(DataError, match=r"Nothing was measured with 7 shots. This run has 10, 50"):
            draw(result, shots=7)


def test_a_map_shows_one_of_two_values():
    with pytest.raises(DnaProbeError, match=r"Unknown value to show 'drip'. Did you mean 'drop'"):
        plots.robustness(RESULTS["3 methods"](), show="drip")


def test_figures_are_drawn_from_the_folder_of_a_benchmark(tmp_path):
    result = make_benchmark(transforms=TRANSFORMS)
    assert plots.read_result("roc", tmp_path) is None
    (tmp_path / "results.json").write_text(json.dumps(result.to_json()))
    for name, draw in FIGURES.items():
        assert plots.FIGURES[name].reads == "results.json"
        found = plots.read_result(name, tmp_path)
        assert found.to_json() == result.to_json()
        figure, _ = plots.FIGURES[name](found, columns=2)
        assert figure.get_figheight() == draw(result, columns=2)[0].get_figheight()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": "dna_probe.layers/1"}', '{"schema": "dna_probe.benchmark/1", "summary": []}']
)
def test_a_damaged_result_says_so(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"results\.json is damaged"):
        plots.read_result("few-shot", tmp_path)


def test_pyplot_and_torch_are_never_touched(tmp_path):
    code = (
        "import sys, dna_probe.plots as plots\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from made_up_results import make_benchmark\n"
        "result = make_benchmark(transforms={'jpeg': (90, 50)}, shots=(5,))\n"
        "for name in ('few-shot', 'generators', 'robustness', 'reliability', 'roc'):\n"
        "    plots.save(plots.FIGURES[name](result)[0], f'{sys.argv[2]}/{name}.pdf')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, str(here), str(tmp_path)], check=True, cwd=here.parents[1])
