from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for the detector, the reports and the figures.")] = None,
    backbone: shared.BackboneName = "nano",
    weights: shared.Weights = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Locate, score, fit and test on the built-in backbone and images."""
    from dna_probe.evaluation.demonstration import demonstrate
    from dna_probe.fitting import fit
    from dna_probe.images.probe_set import probe_set
    from dna_probe.storage import require_free

    if out is not None:
        require_free(out, overwrite)
    model = shared.make_backbone(backbone, weights, device, random_weights=False)
    options = shared.make_options(batch_size, workers, cache, quiet)
    images = probe_set()
    train, test = images.of_split("fit"), images.of_split("test")
    detector = fit(model, train, seed=seed, options=options)
    result = demonstrate(detector, train, test, seed, options)
    if out is not None:
        _write(detector, result, out, overwrite)
    if json:
        shared.echo_json(result)
    elif not quiet:
        _echo(detector, result)
        if out is not None:
            typer.echo(f"Detector, reports and figures written to {out}")


def _write(detector, result: dict, out: Path, overwrite: bool) -> None:
    import json as jsonlib

    from dna_probe import plots
    from dna_probe.cli.locate import write_report
    from dna_probe.storage import replacing_folder

    with replacing_folder(out, overwrite) as folder:
        write_report(detector.layers, folder)
        plots.save(plots.scores(detector.unit_set)[0], folder / "scores.pdf")
        detector.save(folder / "detector")
        (folder / "results.json").write_text(jsonlib.dumps(result, indent=1))


def _echo(detector, result: dict) -> None:
    from dna_probe.cli.fit import echo_detector
    from dna_probe.cli.locate import echo_layers

    echo_layers(detector.layers)
    echo_detector(detector)
    test = result["test"]
    rows = [
        (row["method"], f"{row['auc']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", row["note"])
        for row in result["results"]
    ]
    shared.echo_table(
        f"Held out: {test['real']} real and {test['fake']} forged crops of {test['photographs']} other photographs",
        ["method", "AUC", "95 %", ""],
        rows,
    )
    typer.echo(result["verdict"])
