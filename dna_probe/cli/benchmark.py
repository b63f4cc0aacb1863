from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dna_probe.cli import arguments as shared

if TYPE_CHECKING:
    from dna_probe.evaluation.harness import BenchmarkRun
    from dna_probe.evaluation.results import BenchmarkResult

# Where --shots and --draws are left out.
DEFAULTS = {"few-shot": ("10,50", 10), "train-test": ("all", 1), "robustness": ("all", 1)}
OTHERWISE = ("all", 5)
# Transformed images have no files, and sending them through a second network doubles the longest part of the run.
LEFT_OUT = {"robustness": ("metadata", "random-weights")}
FIGURES = ("few-shot", "generators", "reliability", "roc")


def benchmark(
    data: Annotated[str, typer.Argument(help="The data set: a folder, an archive, a manifest, or the URL of one.")],
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")],
    backbone: shared.BackboneName = "nano",
    protocol: Annotated[
        str,
        typer.Option(help="few-shot, leave-one-generator-out, cross-set, train-test, temporal or robustness."),
    ] = "few-shot",
    test: Annotated[list[str] | None, typer.Option(help="Data set that cross-set tests on; repeatable.")] = None,
    methods: Annotated[
        str, typer.Option(help="By comma, such as dna,last-linear or dna[scorer=weight]; 'all' is every one.")
    ] = "all",
    shots: Annotated[
        str | None, typer.Option(help="Images per class, by comma, or all; left out, by protocol.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Repetitions with other images; left out, by protocol.")
    ] = None,
    train_on: Annotated[str, typer.Option(help="each generator, a mix of all, or names by comma, mixed.")] = "each",
    reals: Annotated[
        str | None,
        typer.Option(help="Real images to train on, where more than shots: a number, or all."),
    ] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of the groups that each draw holds out.")] = 0.5,
    cutoffs: Annotated[str, typer.Option(help="Dates of temporal, by comma: 2023-06-30.")] = "",
    release_dates: Annotated[
        Path | None, typer.Option(help="CSV with the columns generator and release_date, for temporal.")
    ] = None,
    transforms: Annotated[str, typer.Option(help="Of robustness, by comma; left out, all.")] = "",
    test_images: Annotated[int, typer.Option(min=1, help="Most test images per class of robustness.")] = 50,
    layout: shared.LayoutName = "auto",
    equalise: shared.Equalise = False,
    equalise_to: shared.EqualiseTo = shared.EQUALISE_TO,
    target_fpr: shared.TargetFpr = None,
    rule: Annotated[str, typer.Option(help="Layer rule of the method dna.")] = "transition",
    kinds: shared.Kinds = "cls,mean",
    scorer: shared.Scorer = "whitened",
    cut: shared.Cut = "cumulative_knee",
    fraction: shared.Fraction = None,
    classifier: shared.Classifier = "whitened",
    views: shared.Views = "blur",
    jobs: Annotated[int, typer.Option(min=0, help="Processes for the fits; 0 takes every core.")] = 0,
    weights: shared.Weights = None,
    random_weights: shared.RandomWeights = False,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    batch_size: shared.BatchSize = 16,
    workers: shared.Workers = 2,
    engine: shared.Engine = "local",
    precision: shared.Precision = "float32",
    compile: shared.Compile = False,
    cache: shared.Cache = None,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Compare methods side by side on one backbone, the same images and the same draws.

    A run that was interrupted goes on where it stopped when the same command is given again.
    """
    import shutil

    import joblib

    from dna_probe.evaluation.harness import benchmark as run_benchmark
    from dna_probe.evaluation.methods import METHODS
    from dna_probe.evaluation.preparation import Settings, read_release_dates
    from dna_probe.evaluation.protocols import Plan
    from dna_probe.fitting import DnaSettings
    from dna_probe.storage import replacing_folder, require_free

    default_shots, default_draws = DEFAULTS.get(protocol, OTHERWISE)
    settings = Settings(
        protocol=protocol,
        methods=_every(METHODS, protocol) if methods == "all" else shared.names(methods),
        plan=Plan(
            shots=_shots(shots or default_shots),
            draws=draws or default_draws,
            train_on=train_on,
            reals=_reals(reals),
            test_fraction=test_fraction,
            cutoffs=shared.names(cutoffs),
            seed=seed,
        ),
        dna=DnaSettings(
            rule=rule,
            kinds=shared.names(kinds),
            scorer=scorer,
            cut=cut,
            classifier=classifier,
            views=shared.names(views),
            parameters=() if fraction is None else (("fraction", fraction),),
        ),
        equalisation=shared.make_equalisation(equalise, equalise_to),
        target_fpr=target_fpr,
        release_dates=read_release_dates(release_dates) if release_dates else (),
        transforms=shared.names(transforms),
        test_images=test_images,
    )
    shared.require_local(out)
    require_free(out, overwrite)
    options = shared.make_options(batch_size, workers, cache, quiet, engine, precision, compile)
    state = out.parent / f".{out.name}.partial"
    try:
        run = run_benchmark(
            shared.make_backbone(backbone, weights, device, random_weights),
            data,
            test or [],
            settings,
            state=state,
            layout=layout,
            jobs=jobs or joblib.cpu_count(),
            options=options,
            say=(lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
        )
    except KeyboardInterrupt:
        typer.echo(f"dna-probe: interrupted; the same command goes on from {state}", err=True)
        raise typer.Exit(1) from None
    with replacing_folder(out, overwrite) as folder:
        write_benchmark(run, folder)
    shutil.rmtree(state, ignore_errors=True)
    if json:
        shared.echo_json(run.result.to_json())
    elif not quiet:
        echo_benchmark(run.result)
        typer.echo(f"Written to {out}")
    shared.report_skipped(run.bench.images.skipped)


def _every(methods: Iterable[str], protocol: str) -> tuple[str, ...]:
    return tuple(name for name in methods if name not in LEFT_OUT.get(protocol, ()))


def _shots(text: str) -> tuple[int | str, ...]:
    from dna_probe.errors import DataError

    found: list[int | str] = []
    for part in shared.names(text):
        if part != "all" and not (part.isdigit() and int(part) > 0):
            raise DataError(f"{part!r} is not a number of shots", "", "Give numbers by comma, or 'all': 1,10,all")
        found.append(part if part == "all" else int(part))
    return tuple(dict.fromkeys(found))


def _reals(text: str | None) -> int | str | None:
    from dna_probe.errors import DataError

    if text is None or text == "all":
        return text
    if not (text.isdigit() and int(text) > 0):
        raise DataError(f"{text!r} is not a number of real images", "", "Give one number, or 'all'")
    return int(text)


def write_benchmark(run: BenchmarkRun, folder: Path) -> None:
    """The results, and every figure that they can show."""
    from dna_probe import plots
    from dna_probe.evaluation.run_folder import write_run

    write_run(run, folder)
    (folder / "figures").mkdir()
    transformed = any(row["transform"] for row in run.result.summary)
    for name in (*FIGURES, "robustness") if transformed else FIGURES:
        figure, _ = plots.FIGURES[name](run.result)
        plots.save(figure, folder / "figures" / f"{name}.pdf")


def echo_benchmark(result: BenchmarkResult) -> None:
    for seen, where in ((False, "generators not trained on"), (True, "held-out images of the generators trained on")):
        rows = [row for row in result.summary if row["seen"] == seen and not row["transform"]]
        if rows:
            shared.echo_table(
                f"AUC on {where}",
                ["N", "method", "AUC", "95 %", "worst tested", "worst trained on", "against last-linear", "p", "units"],
                map(_cells, rows),
            )
    worst = sorted((row for row in result.summary if row["transform"]), key=lambda row: row["metrics"]["auc"]["value"])
    if worst:
        shared.echo_table(
            "Robustness of dna: the ten worst of all transforms",
            ["transform", "severity", "N", "AUC", "drop", "verdicts flipped"],
            [
                (
                    row["transform"],
                    row["severity"],
                    row["shots"],
                    row["metrics"]["auc"]["value"],
                    row["auc_drop"],
                    f"{row['flips']:.0%}",
                )
                for row in [row for row in worst if row["method"] == "dna"][:10]
            ],
        )
    shared.echo_agreement(result.info)
    for one in result.info["data"]["sets"]:
        for flag in one["audit"]["flags"]:
            typer.echo(f"! {one['name']}: {flag}")


def _cells(row: Mapping[str, Any]) -> tuple:
    auc, change = row["metrics"]["auc"], row["difference"]
    worst = row["worst_train"]
    return (
        row["shots"],
        row["method"],
        auc["value"],
        f"{auc['low']:.3f} to {auc['high']:.3f}",
        f"{row['worst_test']['auc']:.3f} {row['worst_test']['generator']}",
        f"{worst['auc']:.3f} {worst['generator']}" if worst else "",
        f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]" if change else "",
        f"{change['p']:.3f}" if change else "",
        f"{row['units']:.0f}",
    )
