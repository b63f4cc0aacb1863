"""Tables are read back and compared with the result they tell of."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "plots"))

from made_up_results import METHODS, TRANSFORMS, make_benchmark

from dna_probe.evaluation.latex import latex_tables
from dna_probe.evaluation.report import summary_markdown, verdicts

NASTY = r"a_b|c*d & 50% {x} #1 $y ~z^ \w <t>"


def sections(text):
    """Heading -> what stands under it."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text):
    """Every Markdown table as a list of mappings, heads to cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", flags=re.M):
        lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert all(len(line) == len(lines[0]) for line in lines) and set(lines[1]) == {"---"}
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def three(value):
    return f"{value:.3f}"


def told(measured):
    return f"{three(measured['value'])} [{three(measured['low'])}, {three(measured['high'])}]"


def row_of(result, method, shots, seen=False, transform="", level=0):
    key = method, shots, seen, transform, level
    (row,) = [r for r in result.summary if (r["method"], r["shots"], r["seen"], r["transform"], r["level"]) == key]
    return row


def with_difference(result, low, high):
    found = {"value": (low + high) / 2, "low": low, "high": high, "p": 0.2}
    return replace(result, summary=[row | {"difference": found} for row in result.summary])


# Markdown


def test_the_main_tables_agree_with_the_result():
    result = make_benchmark(METHODS, shots=(10, "all"))
    parts = sections(summary_markdown(result))
    for shots, heading in ((10, "10 shots per class"), ("all", "All training images")):
        ranking, operation = tables(parts[heading])
        assert [line["method"].removesuffix(" (control)") for line in ranking] == [
            *METHODS[:9],
            "top-d",
            "random-units",
            "random-weights",
            "metadata",
            "thumbnail",
        ]
        for line in (*ranking, *operation):
            row = row_of(result, line["method"].removesuffix(" (control)"), shots)
            if "AUC [95 %]" in line:
                assert line["AUC [95 %]"] == told(row["metrics"]["auc"])
                assert line["worst generator"] == f"glide ({three(row['worst_test']['auc'])})"
                assert line["worst to train on"] == f"midjourney ({three(row['worst_train']['auc'])})"
                assert line["TPR at 1 % FPR"] == three(row["metrics"]["tpr_at_1"]["value"])
                assert line["TPR at 5 % FPR"] == three(row["metrics"]["tpr_at_5"]["value"])
                difference = row["difference"]
                assert line["p"] == ("0.004" if difference else "–")  # noqa: RUF001
                if difference:
                    assert line["difference to last-linear [95 %]"].startswith(f"{difference['value']:+.3f} [")
            else:
                metrics = row["metrics"]
                assert line["balanced accuracy [95 %]"] == told(metrics["balanced_accuracy"])
                assert line["best common threshold (oracle)"] == three(
                    metrics["common_oracle_balanced_accuracy"]["value"]
                )
                assert line["best threshold each (oracle)"] == three(metrics["oracle_balanced_accuracy"]["value"])
                assert (line["FPR"], line["ECE"], line["Brier"]) == tuple(
                    three(metrics[name]["value"]) for name in ("fpr", "ece", "brier")
                )
                assert line["unsure"] == three(metrics["unsure_share"]["value"])
                assert line["accuracy outside unsure"] == three(metrics["accuracy_sure"]["value"])
        assert [line["units"] for line in ranking][:2] == ["84", "–"]  # noqa: RUF001


def test_controls_and_the_oracle_are_marked_as_such():
    text = summary_markdown(make_benchmark(METHODS, shots=(10,)))
    for name in ("random-units", "random-weights", "metadata", "thumbnail"):
        assert f"| {name} (control) |" in text and f"| {name} |" not in text
    assert "is at the threshold that is best on the test images" in text and "**no method can know it**" in text


def test_what_was_measured_is_said():
    part = sections(summary_markdown(make_benchmark()))["What was measured"]
    for words in (
        "Protocol: few-shot",
        "600 images, 100 real, 500 fake by 5 generators",
        "real 100, midjourney 100",
        "deit_tiny_q3, weights `fedcba987654`",
        "dna_probe 0.1.0, torch 2.9.0",
        "Audit of photos_and_fakes: metadata alone AUC 0.550, 16-pixel thumbnail alone AUC 0.610. No giveaway found.",
    ):
        assert words in part
    assert "**" not in part


def test_a_telling_audit_is_bold_with_its_flags():
    part = sections(summary_markdown(make_benchmark(metadata_auc=0.61)))["What was measured"]
    assert "**metadata alone AUC 0.610, 16-pixel thumbnail alone AUC 0.610: the numbers below may measure" in part
    assert "\n  - **fakes are saved at another JPEG quality**" in part


def test_every_data_set_has_its_audit_and_none_is_owned_to():
    result = make_benchmark()
    audit = result.info["audit"]
    sets = [
        {"name": "one", "describe": "set one", "audit": audit},
        {"name": "two", "describe": "set two", "audit": audit | {"metadata_auc": 0.9, "flags": ["quality"]}},
        {"name": "three", "describe": "set three"},
        {"name": "four", "describe": "set four", "audit": audit | {"metadata_auc": None}},
    ]
    info = dict(result.info) | {"data": dict(result.info["data"]) | {"sets": sets}}
    part = sections(summary_markdown(replace(result, info=info)))["What was measured"]
    assert "Data: set one" in part and "Data: set two" in part
    assert "Audit of one: metadata alone AUC 0.550" in part
    assert "Audit of two: **metadata alone AUC 0.900" in part
    assert "Audit of three: not done" in part
    assert "Audit of four: metadata alone AUC –" in part  # noqa: RUF001


def test_both_sides_are_shown_and_the_unseen_one_leads():
    result = make_benchmark(shots=(10, 50))
    parts = sections(summary_markdown(result))
    assert "On unseen generators" in parts
    (other,) = tables(parts["On generators trained on, images held out"])
    assert [(line["shots"], line["method"]) for line in other[:4]] == [
        ("10", "dna"),
        ("10", "last-linear"),
        ("10", "metadata (control)"),
        ("50", "dna"),
    ]
    assert other[3]["AUC [95 %]"] == told(row_of(result, "dna", 50, seen=True)["metrics"]["auc"])


def test_a_protocol_with_one_side_has_no_table_of_the_other():
    for seen, where in ((False, "unseen generators"), (True, "generators trained on")):
        text = summary_markdown(make_benchmark(sides=(seen,)))
        assert f"## On {where}\n" in text and "images held out" not in text
        assert f"on {where}: AUC" in text


def test_generators_have_their_own_table():
    result = make_benchmark(shots=(10, 50))
    heading = "Per generator: AUC [95 %] on unseen generators, 50 shots per class"
    (lines,) = tables(sections(summary_markdown(result))[heading])
    for line in lines:
        (row,) = [
            r
            for r in result.by_generator
            if (r["method"], r["shots"], r["seen"], r["test_on"]) == ("dna", 50, False, line["generator"])
        ]
        assert line["dna"] == told(row["auc"]) and line["fakes"] == "100"
    assert len(lines) == 5


def test_robustness_comes_worst_first_with_losses_and_flips():
    result = make_benchmark(("dna", "last-linear", "knn"), shots=(50,), transforms=TRANSFORMS)
    parts = sections(summary_markdown(result))
    (overview,) = tables(parts["50 shots per class: all methods"])
    assert [line["method"] for line in overview] == ["dna", "last-linear", "knn"]
    (lines,) = tables(parts["50 shots per class: dna, worst first"])
    assert len(lines) == sum(map(len, TRANSFORMS.values()))
    aucs = [float(line["AUC [95 %]"][:5]) for line in lines]
    assert aucs == sorted(aucs)
    worst = row_of(result, "dna", 50, transform="jpeg", level=5)
    assert (lines[0]["transform"], lines[0]["severity"]) == ("jpeg", "30")
    assert lines[0]["AUC [95 %]"] == told(worst["metrics"]["auc"])
    assert lines[0]["AUC lost"] == three(worst["auc_drop"])
    assert lines[0]["verdicts flipped"] == three(worst["flips"])
    assert (overview[0]["worst AUC"], overview[0]["where"]) == (lines[0]["AUC [95 %]"][:5], "jpeg 30")
    assert "50 shots per class: last-linear, worst first" in parts
    assert "50 shots per class: knn, worst first" not in parts
    assert not any("Robustness" in heading for heading in sections(summary_markdown(make_benchmark())))


def test_notes_methods_left_out_images_and_settings_are_kept():
    result = make_benchmark()
    data = dict(result.info["data"]) | {"skipped": [["a.jpg", "it is empty"]]}
    parts = sections(summary_markdown(replace(result, info=dict(result.info) | {"data": data})))
    assert "3 images could not be read." in parts["Notes"] and "Left out: a.jpg: it is empty" in parts["Notes"]
    assert "dna: what dna does" in parts["Notes"]
    (settings,) = re.findall(r"```json\n(.*)```", parts["Settings"], flags=re.S)
    assert json.loads(settings) == result.info["settings"]


def test_names_cannot_break_the_tables():
    result = make_benchmark((NASTY, "dna"), shots=(10,), generators=(NASTY, "b\nc"), transforms={NASTY: (NASTY,)})
    for table in tables(summary_markdown(result)):
        assert table


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.001, 0.02, "dna beats last-linear on unseen generators: AUC +0.011 [+0.001, +0.020], p = 0.200."),
        (
            -0.01,
            0.02,
            "dna and last-linear tie on unseen generators: AUC +0.005 [-0.010, +0.020], p = 0.200; the inter",
        ),
        (-0.01, 0.0, "dna and last-linear tie"),
        (-0.02, -0.001, "dna loses to last-linear on unseen generators: AUC -0.011 [-0.020, -0.001]"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, words):
    result = with_difference(make_benchmark(shots=(1, 50, "all")), low, high)
    said = verdicts(result)
    assert [sentence.partition(":")[0] for sentence in said] == [
        "1 shot per class",
        "50 shots per class",
        "All training images",
    ]
    assert all(words in sentence for sentence in said)
    assert all(f"- {sentence}" in summary_markdown(result) for sentence in said)


def test_a_small_p_value_is_not_none():
    result = make_benchmark(shots=(50,), sides=(False,))
    found = {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.0002}
    result = replace(result, summary=[row | {"difference": found} for row in result.summary])
    assert verdicts(result)[0].endswith("p < 0.001.")


def test_controls_that_do_as_well_are_named():
    result = make_benchmark(("dna", "last-linear", "random-units", "metadata"), shots=(50,), sides=(False,))
    assert "Controls" not in verdicts(result)[0]
    raised = [
        row | {"metrics": row["metrics"] | {"auc": {"value": 0.99}}} if row["method"] == "random-units" else row
        for row in result.summary
    ]
    assert "**Controls reach as much as its AUC of" in verdicts(replace(result, summary=raised))[0]
    assert "random-units 0.990.**" in verdicts(replace(result, summary=raised))[0]


@pytest.mark.parametrize("methods", [("dna",), ("last-linear", "knn"), ("knn",)])
def test_nothing_is_claimed_of_what_was_not_compared(methods):
    result = make_benchmark(methods)
    assert verdicts(result) == ["dna was not compared with last-linear in this run."]
    assert summary_markdown(result)


# LaTeX


def cells(table):
    """Body of a LaTeX table, line by line."""
    body = table.partition("\\midrule")[2].partition("\\bottomrule")[0]
    return [re.split(r"(?<!\\) & ", line.removesuffix(" \\\\")) for line in body.strip().splitlines()]


def assert_sound(table):
    """Braces balance, no sign of LaTeX stands unescaped, every line has as many cells as columns."""
    depth = 0
    for sign in re.sub(r"\\.", "", table):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    text = table.replace(re.search(r"\\label\{.*\}", table)[0], "")
    assert not re.search(r"(?<!\\)[_#%^~|]", text.replace("|", ""))
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert all(mark in table for mark in ("\\toprule", "\\midrule", "\\bottomrule", "\\caption{", "\\label{tab:"))
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", table)[1])
    assert all(len(line) == columns for line in cells(table))
    assert table.isascii()


def test_every_table_is_sound():
    result = make_benchmark(METHODS, transforms=TRANSFORMS, shots=(10, "all"))
    found = latex_tables(result)
    assert sorted(found) == [
        "auc.tex",
        "differences.tex",
        "generators.tex",
        "operating_point.tex",
        "other_side.tex",
        "robustness.tex",
    ]
    for table in found.values():
        assert_sound(table)
    assert "resize\\_lanczos" in found["robustness.tex"]


def test_tables_that_have_nothing_to_say_are_left_out():
    assert sorted(latex_tables(make_benchmark(("dna",), sides=(False,)))) == [
        "auc.tex",
        "generators.tex",
        "operating_point.tex",
    ]


def test_latex_numbers_agree_with_the_result():
    result = make_benchmark(shots=(10, 50), transforms=TRANSFORMS)
    found = latex_tables(result)
    lines = {line[0]: line[1:] for line in cells(found["auc.tex"])}
    assert list(lines) == ["dna", "last-linear", "metadata"]
    for method, numbers in lines.items():
        assert numbers == [told(row_of(result, method, n)["metrics"]["auc"]) for n in (10, 50)]
    lines = {line[0]: line[1:] for line in cells(found["differences.tex"])}
    assert "last-linear" not in lines
    difference = row_of(result, "metadata", 10)["difference"]
    assert (
        lines["metadata"][0].startswith(f"$-${abs(difference['value']):.3f} [$-$")
        and "p = 0.004" in lines["metadata"][0]
    )
    first = cells(found["operating_point.tex"])[0]
    metrics = row_of(result, "dna", 10)["metrics"]
    names = ("balanced_accuracy", "common_oracle_balanced_accuracy", "fpr", "tpr_at_1", "tpr_at_5", "ece", "brier")
    assert first[:9] == ["dna", "10", *(three(metrics[name]["value"]) for name in names)]
    (worst,) = re.findall(r"\\textbf\{([\d.]+)\} \((.*?)\)", found["robustness.tex"])
    assert worst == (three(row_of(result, "dna", 50, transform="jpeg", level=5)["metrics"]["auc"]["value"]), "30")
    lines = {line[0]: line[1:] for line in cells(found["generators.tex"])}
    (glide,) = [
        r["auc"]["value"]
        for r in result.by_generator
        if (r["method"], r["shots"], r["seen"], r["test_on"]) == ("dna", 50, False, "glide")
    ]
    assert lines["glide"][0] == three(glide)


def test_names_are_escaped():
    result = make_benchmark((NASTY, "dna"), shots=(10,), generators=(NASTY, "[b]"), transforms={NASTY: (NASTY,)})
    found = latex_tables(result)
    for table in found.values():
        assert_sound(table)
    assert r"a\_b" in found["auc.tex"] and r"\& 50\% \{x\} \#1 \$y" in found["generators.tex"]
    assert "\n{[}b]" in found["generators.tex"]
