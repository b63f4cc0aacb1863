import json
from dataclasses import replace

import numpy as np
import pymupdf
import pytest
from matplotlib.figure import Figure
from test_figures import assert_legible

from dna_probe.errors import DataError
from dna_probe.evaluation.audit import Audit, Comparison
from dna_probe.evaluation.file_histograms import TITLES, histograms
from dna_probe.evaluation.metrics import Interval
from dna_probe.plots import save, style
from dna_probe.plots.audit_figure import audit, plain_ticks


def make(rows, measured=True):
    """An audit of files given as (label, format, width, height, quality, bytes, exif)."""
    names = ("format", "width", "height", "quality", "bytes", "exif")
    labels = np.array([row[0] for row in rows])
    facts = [dict(zip(names, row[1:], strict=True)) for row in rows]
    auc = (Interval(1.0, 0.98, 1.0), Interval(0.61, 0.47, 0.75)) if measured else (None, None)
    counts = [int((labels == label).sum()) for label in (0, 1)]
    return Audit(
        origin="made up",
        comparisons=(Comparison("all", counts[0], counts[1], *auc, (("size", 1.0),)),),
        unlabelled=0,
        files={},
        histograms=histograms(facts, labels),
        duplicates=(),
        near_duplicates=(),
        split_groups=(),
        unreadable=(),
        seed=0,
    )


def photographs(count=60, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(200, 4000, (count, 2))
    return [
        (0, "JPEG", int(w), int(h), int(rng.integers(60, 98)), int(w * h / 5), i % 2) for i, (w, h) in enumerate(sizes)
    ]


CASES = {
    "alike": make([(i % 2, "JPEG", 1024, 1024, 75, 100_000, 0) for i in range(12)]),
    "photographs and squares": make(photographs() + [(1, "PNG", s, s, None, s * s, 0) for s in (256, 512, 1024) * 9]),
    "many formats": make(
        [
            (i % 2, name, 300 + i, 200, None, 5000, i)
            for i, name in enumerate(("PNG", "WEBP", "GIF", "TIFF", "JPEG2000", "BMP"))
        ]
    ),
    "in memory": make([(i % 2, None, 64 + i, 64, None, None, 0) for i in range(6)]),
    "close sizes": make([(i % 2, "JPEG", 1000 + i, 1000, 90 + i % 3, 90_000 + 10 * i, 0) for i in range(20)]),
    "not measured": make([(0, "JPEG", 640, 480, 75, 9000, 0), (1, "PNG", 512, 512, None, 90_000, 0)], measured=False),
}
EACH = pytest.mark.parametrize("result", CASES.values(), ids=CASES)


@EACH
@pytest.mark.parametrize("columns", [1, 2])
def test_every_word_is_on_the_page_and_none_covers_another(result, columns):
    figure, panels = audit(result, columns=columns)
    assert [ax.get_label() for ax in panels] == [*TITLES, "auc"]
    assert_legible(figure)


def test_what_is_written(tmp_path):
    figure, _ = audit(CASES["photographs and squares"])
    page = pymupdf.open(save(figure, tmp_path / "audit.pdf"))[0]
    text = page.get_text()
    assert page.rect.width / 72 == pytest.approx(style.COLUMN_INCHES[2], abs=0.005)
    for word in (*TITLES.values(), "share of 60 real", "share of 27 fake", "metadata 1.00", "thumbnail 0.61", "PNG"):
        assert word in text, word
    assert "without: 27 fake" in text


def test_shares_are_of_each_class_and_missing_values_count():
    _, panels = audit(make([(0, "JPEG", 64, 64, 75, 900, 0)] * 3 + [(1, "PNG", 64, 64, None, 900, 0)] * 5))
    quality = panels[list(TITLES).index("quality")]
    real, fake = (patch.get_data().values for patch in quality.patches)
    assert real.sum() == pytest.approx(1) and fake.sum() == 0


def test_a_figure_of_the_stored_audit_is_the_same(tmp_path):
    result = replace(CASES["close sizes"], files={"real": {}, "fake": {}})
    stored = Audit.from_json(json.loads(json.dumps(result.to_json())))
    drawn = [save(audit(one)[0], tmp_path / f"{i}.svg").read_bytes() for i, one in enumerate((result, stored))]
    assert drawn[0] == drawn[1]


def test_it_fits_into_an_axes_of_the_caller():
    figure = Figure(figsize=(8, 5))
    drawn, panels = audit(CASES["alike"], ax=figure.add_subplot())
    assert drawn is figure and len(panels) == 8
    with pytest.raises(DataError, match="too small"):
        audit(CASES["alike"], ax=Figure(figsize=(2, 1)).add_subplot())
    with pytest.raises(DataError, match="cannot show a str"):
        audit("audit")
    with pytest.raises(DataError, match="columns"):
        audit(CASES["alike"], columns=3)


@pytest.mark.parametrize(
    ("low", "high", "bins", "expected"),
    [
        (1024 / 1.1, 1024 * 1.1, 1, [1024]),
        (80, 3000, 20, [100, 300, 1000, 3000]),
        (0.4, 5, 20, [1, 3]),
        (0.05, 0.5, 20, [0.1, 0.3]),
        (80, 30000, 20, [100, 1000, 10000]),
        (1000, 1019, 20, [1000, 1010]),
        (1.5, 1.525, 20, [1.5, 1.51, 1.52]),
    ],
)
def test_ticks_are_round_numbers(low, high, bins, expected):
    assert plain_ticks(np.geomspace(low, high, bins + 1)) == expected
