"""The figures of verification, opened and read back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_figures import assert_legible, page_of

from dna_probe import plots
from dna_probe.control_units import DRAWN, RANKED
from dna_probe.errors import ArtefactError, DataError, DnaProbeError
from dna_probe.plots import style
from dna_probe.stability import Stability
from dna_probe.verification import Verification

READERS = {"readout": ("detector", "all-units"), "network": ("detector", "all-units", "last-layer")}


def make_verification(knee=77, network=True, interventions=("mean", "swap"), falls=0.4, draws=20):
    rows = []
    for place in ("readout", "network")[: 1 + network]:
        for reader in READERS[place]:
            for intervention in interventions:
                own = (0.25, 0.5, 1) if place == "network" else np.linspace(0.125, 1, 8)
                counts = sorted({0, *(max(1, round(share * knee)) for share in own)})
                for kind in ("fdu", *DRAWN, *RANKED):
                    if (place, reader) == ("readout", "detector") and kind != "fdu":
                        continue
                    beyond = (
                        [2 * knee, 4 * knee]
                        if (place, reader) == ("readout", "all-units") and kind in ("fdu", "random")
                        else []
                    )
                    for k in (*counts, *beyond):
                        if kind == "fdu" or (k and (k == knee or kind == "random" or place == "readout")):
                            loss = (falls if kind == "fdu" else 0.05) * (k / knee) ** 0.7 / (1 + 0.5 * (k > knee))
                            auc = 0.93 - loss
                            rows.append(
                                {
                                    "place": place,
                                    "intervention": intervention,
                                    "reader": reader,
                                    "kind": kind,
                                    "k": k,
                                    "masked": float(k),
                                    "auc": auc,
                                    "auc_low": max(auc - 0.04, 0),
                                    "auc_high": min(auc + 0.03, 1),
                                    "accuracy_real": 0.8,
                                    "accuracy_fake": 0.7,
                                    "loss": loss,
                                    "draws": draws if kind in DRAWN else 1,
                                }
                            )
    return Verification("made up", knee, 1920, 700, 32 * network, rows, ())


def make_stability(shots=(10, 20, 50), kinds=("draws", "generators"), high=0.5):
    pairs = [
        {
            "comparison": kind,
            "shots": str(n),
            "pairs": 45,
            "jaccard": high - 0.1 * i,
            "jaccard_low": high - 0.2 - 0.1 * i,
            "jaccard_high": high + 0.15,
            "chance": 0.04,
            "rank_correlation": 0.3,
            "rank_correlation_low": 0.2,
            "rank_correlation_high": 0.4,
        }
        for i, kind in enumerate(kinds)
        for n in shots
    ]
    sizes = [{"shots": n, "generator": "all", "fits": 50, "median": 80.0, "low": 60.0, "high": 104.0} for n in shots]
    return Stability("made up", pairs, sizes, (), 50)


VERIFICATIONS = {
    "all": make_verification,
    "readout alone": lambda: make_verification(network=False),
    "one unit": lambda: make_verification(knee=1),
    "many units": lambda: make_verification(knee=12345),
    "small loss": lambda: make_verification(falls=0.01),
    "swap to nothing": lambda: make_verification(falls=0.93, interventions=("swap",)),
    "one draw": lambda: make_verification(draws=1, interventions=("zero",)),
}
STABILITIES = {
    "all": make_stability,
    "one number of shots": lambda: make_stability(shots=(5,)),
    "one generator": lambda: make_stability(kinds=("draws",)),
    "many numbers": lambda: make_stability(shots=(1, 2, 5, 10, 20, 50, 100)),
}
ALL = [
    *(pytest.param(plots.masking, make, id=f"masking, {name}") for name, make in VERIFICATIONS.items()),
    *(pytest.param(plots.stability, make, id=f"stability, {name}") for name, make in STABILITIES.items()),
]
EACH = pytest.mark.parametrize(
    ("draw", "make"), [(plots.masking, make_verification), (plots.stability, make_stability)]
)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("draw", "make"), ALL)
def test_every_word_is_on_the_page_and_none_covers_another(draw, make, columns):
    assert_legible(draw(make(), columns=columns)[0])


@EACH
def test_pages_have_their_width_and_bytes_do_not_change(draw, make, tmp_path):
    result = make()
    before = json.dumps(result.to_json())
    assert page_of(draw(result, columns=1)[0], tmp_path).rect.width / 72 == pytest.approx(3.35, abs=0.005)
    files = [plots.save(draw(result)[0], tmp_path / f"{i}.svg").read_bytes() for i in range(2)]
    assert files[0] == files[1] and b"<text" in files[0]
    with Image.open(plots.save(draw(result)[0], tmp_path / "a.png")) as image:
        assert np.asarray(image.convert("L")).std() > 10
    assert json.dumps(result.to_json()) == before


def test_what_is_written_on_the_masking_figure(tmp_path):
    result = make_verification()
    figure, panels = plots.masking(result)
    text = page_of(figure, tmp_path).get_text()
    for word in (
        "readout,",
        "in the network,",
        "probe on last layer",
        "weight-matched",
        "knee",
        "units set to mean",
        "77",
        "308",
    ):
        assert word in text
    assert (
        len(panels) == 5
        and "units swapped" in page_of(plots.masking(result, intervention="swap")[0], tmp_path).get_text()
    )


def test_lines_hold_what_was_measured_and_the_knee_is_marked():
    result = make_verification()
    _, panels = plots.masking(result)
    lines = {line.get_label(): line for line in panels[1].lines}
    mine = [
        row
        for row in result.rows
        if (row["place"], row["reader"], row["intervention"], row["kind"]) == ("readout", "all-units", "mean", "fdu")
    ]
    np.testing.assert_allclose(lines["selected units"].get_xdata(), [row["k"] for row in mine])
    np.testing.assert_allclose(lines["selected units"].get_ydata(), [row["auc"] for row in mine])
    assert lines["random"].get_xdata()[-1] == 308 and lines["random"].get_ydata()[0] == mine[0]["auc"]
    assert any(np.allclose(line.get_xdata(), 77) and line.get_color() == style.VERMILLION for line in panels[1].lines)
    assert len(panels[0].collections) == 1 and len(panels[1].collections) >= 2, "bands"


def test_the_stability_figure_shows_the_chance_level():
    result = make_stability()
    _, (agreement, sizes) = plots.stability(result)
    lines = {line.get_label(): line for line in agreement.lines}
    assert lines["other draw"].get_ydata().tolist() == [0.5, 0.5, 0.5]
    assert lines["chance, other draw"].get_ydata().tolist() == [0.04, 0.04, 0.04]
    assert [tick.get_text() for tick in sizes.get_xticklabels()] == ["10", "20", "50"]


@EACH
def test_it_is_drawn_into_a_given_axes(draw, make):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6))
    ax = figure.add_subplot()
    drawn, _ = draw(make(), ax=ax)
    assert drawn is figure
    with pytest.raises(DataError, match=r"The axes is too small for the figure"):
        draw(make(), ax=Figure(figsize=(1.5, 1)).add_subplot())


def test_errors():
    with pytest.raises(DataError, match=r"The figure 'masking' cannot show a Stability"):
        plots.masking(make_stability())
    with pytest.raises(DnaProbeError, match=r"Unknown intervention 'swp'. Did you mean 'swap'"):
        plots.masking(make_verification(), intervention="swp")
    with pytest.raises(DataError, match=r"has nothing to show. This verification holds no rows"):
        plots.masking(replace(make_verification(), rows=()))
    with pytest.raises(DataError, match=r"No two selections were made with the same number of images"):
        plots.stability(replace(make_stability(), pairs=()))
    with pytest.raises(DataError, match=r"cannot be 3 columns wide"):
        plots.stability(make_stability(), columns=3)


@pytest.mark.parametrize(
    ("name", "make", "file"),
    [("masking", make_verification, "verification.json"), ("stability", make_stability, "stability.json")],
)
def test_a_run_is_read_back_and_drawn_alike(name, make, file, tmp_path):
    result = make()
    assert plots.read_result(name, tmp_path) is None
    (tmp_path / file).write_text(json.dumps(result.to_json()))
    again = plots.read_result(name, tmp_path)
    figures = [plots.save(plots.FIGURES[name](one)[0], tmp_path / f"{i}.svg") for i, one in enumerate((result, again))]
    assert figures[0].read_bytes() == figures[1].read_bytes()
    (tmp_path / file).write_text('{"schema": "dna_probe.layers/1"}')
    with pytest.raises(ArtefactError, match=r"is damaged. ValueError: its schema is 'dna_probe.layers/1'"):
        plots.read_result(name, tmp_path)
