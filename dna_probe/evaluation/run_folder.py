"""The folder of a benchmark: what is written into it, and reading it back.

``results.json`` (everything but single images), ``results.parquet`` (one row per cell, condition, method and tested
generator), ``images.parquet`` (the images), ``outcomes/`` (what every method said of every test image), ``summary.md``
and ``tables/*.tex``. Nothing in it depends on when or how often the run was started.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dna_probe.errors import ArtefactError
from dna_probe.evaluation.outcomes import CellOutcome
from dna_probe.evaluation.report import latex_tables, summary_markdown

if TYPE_CHECKING:
    import pandas as pd

    from dna_probe.evaluation.harness import BenchmarkRun


def write_run(run: BenchmarkRun, folder: Path) -> None:
    """Write everything but the figures."""
    import pandas as pd

    (folder / "results.json").write_text(json.dumps(run.result.to_json(), indent=1))
    rows = pd.DataFrame(run.rows)
    # Numbers and "all" do not fit one parquet column.
    rows["shots"] = rows["shots"].astype(str)
    rows.to_parquet(folder / "results.parquet", index=False)
    run.bench.frame().to_parquet(folder / "images.parquet", index=False)
    (folder / "summary.md").write_text(summary_markdown(run.result), encoding="utf-8")
    (folder / "tables").mkdir()
    for name, table in latex_tables(run.result).items():
        (folder / "tables" / name).write_text(table, encoding="utf-8")
    (folder / "outcomes").mkdir()
    for outcome in run.outcomes:
        shutil.copyfile(outcome, folder / "outcomes" / outcome.name)


def read_images_table(folder: Path) -> pd.DataFrame:
    """The images of a run: path, label, generator, set, group, sha256.

    Raises:
        ArtefactError: missing or damaged.
    """
    import pandas as pd

    path = folder / "images.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path} cannot be read", " ".join(str(error).split()), "Give a folder that 'benchmark' wrote"
        ) from error


def read_outcomes(folder: Path) -> Iterator[CellOutcome]:
    """The outcomes of a run, in order.

    Raises:
        ArtefactError: there are none, or one is damaged.
    """
    files = sorted((folder / "outcomes").glob("*.safetensors"))
    if not files:
        raise ArtefactError(f"{folder} holds no outcomes", "", "Give a folder that 'benchmark' wrote")
    return map(CellOutcome.read, files)
