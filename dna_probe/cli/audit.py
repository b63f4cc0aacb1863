from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dna_probe.cli import arguments as shared

if TYPE_CHECKING:
    from dna_probe.evaluation.audit import Audit
    from dna_probe.images.views import EqualisationReport

# As given, and what equalising left.
GIVEN, EQUALISED = "as given", "equalised"
MOST_SHOWN = 10


def audit(
    data: Annotated[Path, typer.Argument(help="Folder, manifest or archive of labelled images.")],
    layout: shared.LayoutName = "auto",
    equalise: shared.Equalise = False,
    equalise_to: shared.EqualiseTo = shared.EQUALISE_TO,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json, audit.csv and audit.pdf.")] = None,
    seed: shared.Seed = 0,
    workers: shared.Workers = 2,
    overwrite: shared.Overwrite = False,
    quiet: shared.Quiet = False,
    json: shared.Json = False,
) -> None:
    """Say what tells real from fake besides the traces of a generator: files, thumbnails, copies, leaks."""
    from dna_probe.evaluation.audit import audit as run_audit
    from dna_probe.images.views import equalisation_report, equalise_set
    from dna_probe.shards import progress_bar
    from dna_probe.storage import replacing_folder, require_free

    equalisation = shared.make_equalisation(equalise, equalise_to)
    if out is not None:
        require_free(out, overwrite)
    images = shared.read_set(data, layout, quiet, images_for="The audit")
    audits = {GIVEN: run_audit(images, seed=seed, workers=workers, progress=not quiet)}
    changes = None
    if equalisation is not None:
        with progress_bar(len(images), not quiet) as advance:
            equalised = equalise_set(images, equalisation, workers, advance)
        changes = equalisation_report(images, equalised, equalisation)
        audits[EQUALISED] = run_audit(equalised, seed=seed, workers=workers, progress=not quiet)
    result = to_json(audits, changes)
    if out is not None:
        with replacing_folder(out, overwrite) as folder:
            write_audit(audits, result, folder)
    if json:
        shared.echo_json(result)
    elif not quiet:
        echo_audits(audits, changes)
        if out is not None:
            typer.echo(f"Written to {out}")
    shared.report_skipped(audits[GIVEN].unreadable)


def to_json(audits: Mapping[str, Audit], changes: EqualisationReport | None) -> dict[str, Any]:
    """The audit of the images as given; under ``equalised`` that of the equalised ones and what was changed."""
    result = audits[GIVEN].to_json()
    if changes is not None:
        result["equalised"] = {**audits[EQUALISED].to_json(), "changes": changes.to_json()}
    return result


def write_audit(audits: Mapping[str, Audit], result: dict[str, Any], folder: Path) -> None:
    """audit.json, audit.csv, audit.pdf, and audit_equalised.pdf where the images were equalised."""
    import pandas as pd

    from dna_probe.plots.audit_figure import audit as draw
    from dna_probe.plots.saving import save

    (folder / "audit.json").write_text(jsonlib.dumps(result, indent=1))
    tables = [found.table().assign(images=name) for name, found in audits.items()]
    table = pd.concat(tables, ignore_index=True)
    table[["images", *table.columns.drop("images")]].to_csv(folder / "audit.csv", index=False)
    save(draw(audits[GIVEN])[0], folder / "audit.pdf")
    if EQUALISED in audits:
        save(draw(audits[EQUALISED])[0], folder / "audit_equalised.pdf")


def echo_audits(audits: Mapping[str, Audit], changes: EqualisationReport | None) -> None:
    for name, found in audits.items():
        echo_comparisons(found, name)
    if changes is None:
        echo_files(audits[GIVEN])
    else:
        echo_changes(changes)
    echo_clusters(audits[GIVEN])
    for name, found in audits.items():
        typer.echo(f"{name[0].upper()}{name[1:]}: {found.verdict}" if changes else found.verdict)


def echo_comparisons(found: Audit, name: str) -> None:
    from dna_probe.evaluation.audit_sentences import LIMIT

    def measured(value) -> str:
        return "too few images" if value is None else f"{value}{' !' if value.value > LIMIT else ''}"

    rows = [
        [
            one.generator,
            one.real,
            one.fake,
            measured(one.metadata),
            measured(one.thumbnail),
            ", ".join(f"{what} {value:.2f}" for what, value in one.told_by),
        ]
        for one in found.comparisons
    ]
    title = f"Images {name}: out-of-fold AUC with 95 % interval; ! over {LIMIT:g}"
    shared.echo_table(title, ["generator", "real", "fake", "metadata", "16 x 16 pixels", "metadata alone"], rows)


def echo_files(found: Audit) -> None:
    from dna_probe.images.views import file_words

    shared.echo_table("Files", ["", ""], [(name, file_words(told)) for name, told in found.files.items()])


def echo_changes(changes: EqualisationReport) -> None:
    from dna_probe.images.views import file_words

    rows = []
    for name in changes.before:
        rows += [(f"{name} before", file_words(changes.before[name])), ("after", file_words(changes.after[name]))]
        rows += [("left out", f"{count}: {reason}") for reason, count in changes.left_out[name].items()]
    shared.echo_table(f"Equalised to {changes.equalisation}", ["", ""], rows)


def echo_clusters(found: Audit) -> None:
    """Copies and leaks, the first of each, and how many there are."""
    kinds = {
        "duplicates": found.duplicates,
        "near-duplicates": found.near_duplicates,
        "leaks": tuple(cluster for _, cluster in found.leaks),
    }
    rows = []
    for kind, clusters in kinds.items():
        rows.append((kind, f"{len(clusters)}" if clusters else "none"))
        for cluster in clusters[:MOST_SHOWN]:
            told = f" ({'; '.join(cluster.leaks)})" if cluster.leaks else ""
            rows.append(("", f"{', '.join(cluster.images)}{told}"))
        if len(clusters) > MOST_SHOWN:
            rows.append(("", f"and {len(clusters) - MOST_SHOWN} more, see --json"))
    shared.echo_table("Copies and leaks", ["", ""], rows)
