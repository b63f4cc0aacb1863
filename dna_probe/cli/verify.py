from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dna_probe.cli import arguments as shared

if TYPE_CHECKING:
    from dna_probe.collection import Options
    from dna_probe.detector import Detector
    from dna_probe.images.sets import ImageSet
    from dna_probe.selectivity import Selectivity
    from dna_probe.stability import Stability
    from dna_probe.verification import Verification

MASKING, STABILITY, SELECTIVITY = "masking", "stability", "selectivity"
CHECKS = (MASKING, STABILITY, SELECTIVITY)


def verify(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote.")],
    data: Annotated[Path, typer.Argument(help="Labelled images, texts or recordings: a folder, archive or table.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and JSON of every check.")],
    checks: Annotated[str, typer.Option(help=f"What to check, by comma: {', '.join(CHECKS)}.")] = ",".join(CHECKS),
    interventions: Annotated[str, typer.Option(help="How units are masked, by comma.")] = "mean,zero,swap",
    draws: Annotated[int, typer.Option(min=1, help="Sets of each drawn kind of control units.")] = 20,
    max_images: Annotated[
        int, typer.Option(min=0, help="Most images to edit inside the network; 0 leaves that out.")
    ] = 32,
    shots: Annotated[
        str, typer.Option(help="Of stability: images per class of the selections, by comma.")
    ] = "10,20,50",
    refits: Annotated[int, typer.Option(min=2, help="Of stability: selections per generator and shots.")] = 5,
    layout: shared.LayoutName = "auto",
    modality: shared.Modality = "auto",
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
    """Check a detector's units: mask them against matched controls, select them again, sweep over nuisances.

    A detector that was fitted on equalised images treats these alike. A check that these images or this detector do not
    allow is told and left out.
    """
    from dna_probe.detector import load
    from dna_probe.interventions import require_interventions
    from dna_probe.storage import replacing_folder, require_free

    wanted, masks = _checks(checks), shared.names(interventions)
    numbers = _numbers(shots)
    require_interventions(masks)
    require_free(out, overwrite)
    images = shared.read_set(data, layout, quiet, modality)
    loaded = load(detector, weights=weights, device=device)
    if loaded.equalisation is not None and not quiet:
        typer.echo(f"equalising: {loaded.equalisation}", err=True)
    options = shared.make_options(batch_size, workers, cache, quiet)
    runs: dict[str, Callable[[], Any]] = {
        MASKING: lambda: _mask(loaded, images, masks, draws, max_images, seed, options),
        STABILITY: lambda: _select_again(loaded, images, numbers, refits, seed, options),
        SELECTIVITY: lambda: _sweep(loaded, images, seed, options),
    }
    found = _run({check: runs[check] for check in wanted})
    with replacing_folder(out, overwrite) as folder:
        for check, result in found.items():
            WRITERS[check](result, folder)
    if json:
        shared.echo_json({"schema": "dna_probe.verify/1"} | {check: one.to_json() for check, one in found.items()})
    elif not quiet:
        for check, result in found.items():
            PRINTERS[check](result)
        typer.echo(f"Written to {out}")
    shared.report_skipped(list(dict.fromkeys(pair for one in found.values() for pair in getattr(one, "skipped", ()))))


def _run(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Results of the checks that can be made; raises what stands against the first if none can."""
    from dna_probe.errors import DnaProbeError

    found: dict[str, Any] = {}
    failed: list[tuple[str, DnaProbeError]] = []
    for check, make in runs.items():
        try:
            found[check] = make()
        except DnaProbeError as error:
            failed.append((check, error))
    if not found:
        raise failed[0][1]
    for check, why in failed:
        typer.echo(f"{check} was left out: {why}", err=True)
    return found


def _checks(text: str) -> tuple[str, ...]:
    from dna_probe.errors import DnaProbeError, unknown_name

    wanted = shared.names(text)
    for name in wanted:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    if not wanted:
        raise DnaProbeError("No check was named", fix=f"Known: {', '.join(CHECKS)}")
    return wanted


def _numbers(text: str) -> tuple[int, ...]:
    from dna_probe.errors import DataError

    parts = shared.names(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"--shots {text!r} is not understood", "", "Give whole numbers by comma, like 10,20,50")
    return tuple(map(int, parts))


def _mask(
    detector: Detector,
    images: ImageSet,
    interventions: tuple[str, ...],
    draws: int,
    max_images: int,
    seed: int,
    options: Options,
) -> Verification:
    from dna_probe.verification import verify as mask

    return mask(
        detector,
        images,
        interventions=interventions,
        draws=draws,
        max_images=max_images,
        seed=seed,
        options=options,
    )


def _select_again(
    detector: Detector, images: ImageSet, shots: tuple[int, ...], refits: int, seed: int, options: Options
) -> Stability:
    """Selections as the detector's was made."""
    from dna_probe.errors import DnaProbeError
    from dna_probe.stability import measure_stability

    made, units = detector.provenance, detector.unit_set
    if units is None or "rule" not in made:
        raise DnaProbeError(
            "How this detector selected its units is not stored with it", "", "Fit it again, or leave stability out"
        )
    if made["rule"] == "named":
        raise DnaProbeError(
            "The layers of this detector were named by hand",
            "Stability selects layers and units again by a rule",
            "Fit with --rule, or leave stability out",
        )
    return measure_stability(
        detector.backbone,
        images,
        shots=shots,
        draws=refits,
        rule=made["rule"],
        kinds=made["kinds"],
        scorer=made["scorer"],
        cut=units.cut,
        scope=units.scope,
        views=made["views"],
        equalisation=detector.equalisation,
        seed=seed,
        options=options,
        **units.parameters,
    )


def _sweep(detector: Detector, images: ImageSet, seed: int, options: Options) -> Selectivity:
    from dna_probe.selectivity import measure_selectivity

    return measure_selectivity(detector, images, seed=seed, options=options)


def write_masking(found: Verification, folder: Path) -> None:
    """verification.json, masking.csv, and a figure per intervention: masking.pdf and .png for the first."""
    from dna_probe.plots.masking_figure import masking
    from dna_probe.plots.saving import save

    _write(found.to_json(), folder / "verification.json")
    found.table().to_csv(folder / "masking.csv", index=False)
    for number, name in enumerate(dict.fromkeys(row["intervention"] for row in found.rows)):
        figure, _ = masking(found, intervention=name)
        save(figure, folder / ("masking.pdf" if not number else f"masking_{name}.pdf"))
        if not number:
            save(figure, folder / "masking.png")


def write_stability(found: Stability, folder: Path) -> None:
    """stability.json, stability.csv, stability_units.csv, and stability.pdf where there is a pair to draw."""
    from dna_probe.plots.saving import save
    from dna_probe.plots.stability_figure import stability

    _write(found.to_json(), folder / "stability.json")
    found.table().to_csv(folder / "stability.csv", index=False)
    found.frequency_table().to_csv(folder / "stability_units.csv", index=False)
    if any(row["comparison"] != "shots" for row in found.pairs):
        save(stability(found)[0], folder / "stability.pdf")


def write_selectivity(found: Selectivity, folder: Path) -> None:
    """selectivity.json, units.csv and units.pdf."""
    from dna_probe.plots.saving import save
    from dna_probe.plots.units_figure import units

    _write(found.to_json(), folder / "selectivity.json")
    found.table().to_csv(folder / "units.csv", index=False)
    save(units(found)[0], folder / "units.pdf")


def _write(data: Mapping[str, Any], path: Path) -> None:
    path.write_text(jsonlib.dumps(data, indent=1))


def echo_masking(found: Verification) -> None:
    from dna_probe.control_units import DRAWN

    def ratio(one: Mapping[str, Any] | None) -> str:
        if one is None:
            return ""
        return f"{one['loss']:.3f}" + ("" if one["ratio"] is None else f" ({one['ratio']:.1f} x)")

    rows = [
        (
            f"{row['place']}, {row['reader']}",
            row["intervention"],
            row["unmasked"],
            row["loss"],
            *(ratio(row["controls"].get(kind)) for kind in DRAWN),
            "" if row["spearman"] is None else f"{row['spearman']:.2f}",
            _change(row["accuracy_real"]),
            _change(row["accuracy_fake"]),
            "n/a" if row["self_repair"] is None else f"{row['self_repair']:.0%}",
        )
        for row in found.summary
    ]
    title = f"Loss of AUC where the {found.knee} units of {found.units} are masked; beside it that of controls"
    columns = ["place, reader", "by", "AUC", "loss", *DRAWN, "Spearman", "acc. real", "acc. fake", "self-repair"]
    shared.echo_table(title, columns, rows)
    _echo_sentences(found.verdicts, found.notes)


def echo_stability(found: Stability) -> None:
    rows = [
        (
            row["comparison"],
            row["shots"],
            row["pairs"],
            f"{row['jaccard']:.3f} [{row['jaccard_low']:.3f}, {row['jaccard_high']:.3f}]",
            row["chance"],
            "" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}",
        )
        for row in found.pairs
    ]
    title = f"Agreement of {found.fits} selections of units that differ in"
    shared.echo_table(title, ["", "shots", "pairs", "Jaccard", "by chance", "rank correlation"], rows)
    _echo_sentences(found.verdicts, found.notes)


def echo_selectivity(found: Selectivity) -> None:
    typer.echo(repr(found))


def _change(pair: Any) -> str:
    before, after = pair
    return f"{before:.2f} to {after:.2f}"


def _echo_sentences(verdicts: Any, notes: Any) -> None:
    for sentence in verdicts:
        typer.echo(f"- {sentence}")
    for note in notes:
        typer.echo(f"! {note}")


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    MASKING: write_masking,
    STABILITY: write_stability,
    SELECTIVITY: write_selectivity,
}
PRINTERS: dict[str, Callable[[Any], None]] = {
    MASKING: echo_masking,
    STABILITY: echo_stability,
    SELECTIVITY: echo_selectivity,
}
