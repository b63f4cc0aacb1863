"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dna_probe.backbones.contract import Backbone
    from dna_probe.collection import Options
    from dna_probe.images.sets import ImageSet
    from dna_probe.images.views import Equalisation

BackboneName = Annotated[
    str,
    typer.Option("--backbone", help="'nano' (built in), a timm model name, or path/to/file.py:factory."),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="Local weights: .safetensors, or .pth.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Untrained weights, as a control.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images in one forward pass.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Threads that decode images.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder for features of images already seen.")]
Engine = Annotated[
    str,
    typer.Option("--engine", help="local, or ray: the cluster that RAY_ADDRESS names, or else this machine's cores."),
]
Precision = Annotated[
    str, typer.Option("--precision", help="float32, or bfloat16 by autocast; how near it comes is measured and told.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Collect by torch.compile: for thousands of images.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no table.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --out if it is there.")]

LayoutName = Annotated[
    str, typer.Option("--layout", help="How DATA lies: auto finds out and says it; or a name such as genimage.")
]
Modality = Annotated[str, typer.Option(help="What the samples are: image, text or audio; auto looks at them.")]
Rule = Annotated[
    str, typer.Option(help="transition, intersection, union, top_m, all, last, or layers by number, such as 3-7 or 5.")
]
Kinds = Annotated[
    str,
    typer.Option(
        help="Unit kinds, by comma: cls, mean, max, std, top of a block's output, the same of its MLP (mlp, "
        "mlp_mean, ...), heads, heads_mean."
    ),
]
Scorer = Annotated[str, typer.Option(help="How units are scored, for example whitened, triadic or weight.")]
Cut = Annotated[str, typer.Option(help="Which stay: cumulative_knee, knee, fraction, top_k, stable, fdr, local_fdr.")]
Fraction = Annotated[float | None, typer.Option(help="Share of the units that the cut 'fraction' keeps.")]
Classifier = Annotated[str, typer.Option(help="whitened, logistic, linear_svm, rbf_svm, lda or prototype.")]
Views = Annotated[
    str, typer.Option(help="Processed views of each training image, by comma: blur, resize, jpeg, webp, noise, crop.")
]
Equalise = Annotated[
    bool, typer.Option("--equalise", help="Give both classes one size, codec and quality first, and say what changed.")
]
EQUALISE_TO = "256,224,90"
EqualiseTo = Annotated[
    str, typer.Option("--equalise-to", help="Of --equalise: short side, centre crop and JPEG quality.")
]
TargetFpr = Annotated[
    float | None, typer.Option("--target-fpr", help="Set the threshold for this share of reals called fake.")
]


def names(text: str) -> tuple[str, ...]:
    """The parts of a list by comma; commas in square brackets belong to the part."""
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())


def read_set(data: str | Path, layout: str, quiet: bool, modality: str = "auto", images_for: str = "") -> ImageSet:
    """The labelled samples, and on standard error what was found, before anything runs.

    `images_for` names what there is of images alone; anything else is then refused.
    """
    from dna_probe.samples import read_images_for, read_samples

    images = read_images_for(images_for, data, layout) if images_for else read_samples(data, layout, modality)
    if not quiet:
        typer.echo(f"found {images.layout}", err=True)
        typer.echo(images.describe(), err=True)
    return images


def make_equalisation(wanted: bool, to: str) -> Equalisation | None:
    from dna_probe.errors import DataError
    from dna_probe.images.views import Equalisation

    if not wanted and to == EQUALISE_TO:
        return None
    parts = names(to)
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise DataError(f"--equalise-to {to!r} is not understood", "", f"Give three whole numbers, like {EQUALISE_TO}")
    return Equalisation(*map(int, parts))


def equalise(images: ImageSet, treatment: Equalisation, workers: int, quiet: bool) -> ImageSet:
    """The images equalised, and on standard error what that changed."""
    from dna_probe.images.views import equalisation_report, equalise_set, unreadable
    from dna_probe.shards import progress_bar

    with progress_bar(len(images), not quiet) as advance:
        made = equalise_set(images, treatment, workers, advance)
    if not quiet:
        typer.echo(repr(equalisation_report(images, made, treatment)), err=True)
    return unreadable(made)


def make_options(
    batch_size: int,
    workers: int,
    cache: Path | None,
    quiet: bool,
    engine: str = "local",
    precision: str = "float32",
    compile: bool = False,
) -> Options:
    """Connects to the cluster where the engine is one, so that what is wrong with it shows before anything runs."""
    from dna_probe.collection import Options
    from dna_probe.engines import open_engine
    from dna_probe.precision import require_precision

    require_local(cache)
    require_precision(precision, compile)
    open_engine(engine)
    return Options(batch_size, workers, cache, not quiet, engine, precision, compile)


def require_local(folder: Path | None) -> None:
    """Raises ``DataError`` for a folder that was given as a URL: nothing is written there."""
    from dna_probe.errors import DataError

    # A path has lost one of the slashes.
    if folder is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise DataError(
            f"{folder} cannot be written",
            "Images and manifests can be read by URL, and results go to a disk",
            "Write to a folder, and copy it",
        )


def make_backbone(name: str, weights: Path | None, device: str, random_weights: bool) -> Backbone:
    from dna_probe.backbones import open_backbone

    return open_backbone(name, weights=weights, device=device, random_weights=random_weights)


def echo_json(data: Any) -> None:
    typer.echo(jsonlib.dumps(data, indent=1))


def echo_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for people on standard output."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(cell: Any) -> Text:
        # Square brackets in the name of a file are no markup, and its bytes need not be characters.
        shown = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
        return Text(shown.encode(errors="surrogateescape").decode(errors="replace"))

    table = Table(title=text(title), box=SIMPLE_HEAD, title_justify="left", pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(text, row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def echo_agreement(provenance: Mapping[str, Any]) -> None:
    """How near a lower precision came to float32, where one was asked for."""
    from dna_probe.precision import Agreement

    if "agreement" in provenance:
        typer.echo(Agreement(**provenance["agreement"]))


def report_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Name each image that could not be read on standard error; ends the command with status 3 if there is one."""
    for name, reason in skipped:
        typer.echo(f"skipped {name}: {reason}", err=True)
    if skipped:
        raise typer.Exit(3)
