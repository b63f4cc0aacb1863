from __future__ import annotations

import csv
import io
import json as jsonlib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import DataError, DnaProbeError
from dna_probe.storage import replacing_file

if TYPE_CHECKING:
    from dna_probe.detector import Prediction

STDIN = "-"
COLUMNS = ("path", "probability", "verdict", "threshold", "error")


def predict(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote, or file that 'export' wrote.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images (or texts, or recordings), folders, globs or zips; - reads a list of files, one on a line, "
            "from standard input."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File for the answer; left out, standard output.")] = None,
    csv_: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False,
    weights: shared.Weights = None,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Say of each image, text or recording whether it is real, fake, or unsure, in the order given.

    JSON and CSV are written as the verdicts come, in memory that does not grow with their number.
    """
    from dna_probe.artefacts import open_detector
    from dna_probe.exported import ExportedDetector
    from dna_probe.images.sets import noun_of

    if json and csv_:
        raise DnaProbeError("--json and --csv exclude each other", fix="Choose one")
    if out is not None and out.exists() and not overwrite:
        raise DnaProbeError(f"{out} exists", fix="Choose another file or pass --overwrite")
    if paths.count(STDIN) > 1:
        raise DnaProbeError("Standard input can be read once", f"{STDIN} was given {paths.count(STDIN)} times")
    fitted = open_detector(detector, weights=weights, device=device)
    if cache is not None and isinstance(fitted, ExportedDetector):
        raise DnaProbeError(f"{detector} has no features to keep", "It is exported", "Leave out --cache")
    noun = noun_of(fitted.modality)
    written = json or csv_ or out is not None
    # A bar among the rows on a terminal would tear them.
    torn = written and out is None and sys.stdout.isatty()
    options = shared.make_options(batch_size, workers, cache, quiet or torn)
    unreadable = _Unreadable()
    predictions = unreadable.named(fitted.stream(_listed(paths, fitted.modality), options))
    if written:
        about = {"path": str(detector), "backbone": fitted.name, "threshold": fitted.threshold}
        with _output(out) as stream:
            if csv_:
                _write_csv(stream, predictions)
            else:
                _write_json(stream, about, predictions)
    else:
        rows = [
            (p.path, "" if p.probability is None else f"{p.probability:.3f}", p.verdict or f"error: {p.error}")
            for p in predictions
            if not quiet
        ]
        if not quiet:
            title = f"{len(rows)} {noun}, threshold {fitted.threshold:.3f}"
            shared.echo_table(title, [fitted.modality, "p(fake)", "verdict"], rows)
    if unreadable.count:
        raise typer.Exit(3)


class _Unreadable:
    """Names on standard error, as they pass, the samples that could not be read, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def named(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            if prediction.error is not None:
                self.count += 1
                typer.echo(f"skipped {prediction.path}: {prediction.error}", err=True)
            yield prediction


def _listed(paths: Sequence[str], modality: str) -> Iterable[Any]:
    """What the arguments name; all but standard input is listed, and its errors told, before anything is read."""
    from dna_probe.samples import read_unlabelled_samples

    parts = [_lines() if path == STDIN else read_unlabelled_samples([path], modality) for path in paths]
    together = chain.from_iterable(parts)
    return together if STDIN in paths else list(together)


def _lines() -> Iterator[Path]:
    """The file that each line of standard input names, blank ones left out; a path may be any bytes."""
    found = False
    for line in sys.stdin.buffer:
        if line.strip():
            found = True
            yield Path(os.fsdecode(line.rstrip(b"\r\n")))
    if not found:
        raise DataError("No paths came on standard input", "", "give one on a line, as 'find DIR -name *.jpg' does")


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """Standard output as it is now, or a file written beside its name and renamed at the end.

    Raises:
        DataError: the disk is full or the folder cannot be written; what was there is kept.
    """
    if out is None:
        # A path may be any bytes, as a file's name is.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        # A progress bar would turn what is printed while it stands to its own stream.
        yield sys.stdout
        return
    with replacing_file(out) as beside:
        beside.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield stream


def _write_json(stream: TextIO, about: dict[str, Any], predictions: Iterable[Prediction]) -> None:
    """The whole object as `json.dumps` with an indent of 1 would give it, one prediction at a time."""
    opening = jsonlib.dumps({"schema": "dna_probe.predictions/1", "detector": about}, indent=1).removesuffix("\n}")
    before = f'{opening},\n "predictions": [\n'
    for prediction in predictions:
        stream.write(before + textwrap.indent(jsonlib.dumps(prediction.to_json(), indent=1), "  "))
        stream.flush()
        before = ",\n"
    stream.write("\n ]\n}\n")


def _write_csv(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    rows = iter(predictions)
    # Before the header, so that a command that comes to nothing prints nothing.
    first = list(islice(rows, 1))
    writer.writeheader()
    for prediction in chain(first, rows):
        writer.writerow(prediction.to_json())
        stream.flush()
