"""The command line: one thin file per command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from dna_probe.cli.audit import audit
from dna_probe.cli.backbones import backbones
from dna_probe.cli.benchmark import benchmark
from dna_probe.cli.cache import cache
from dna_probe.cli.collect import collect
from dna_probe.cli.compare import compare
from dna_probe.cli.demo import demo
from dna_probe.cli.evaluate import evaluate
from dna_probe.cli.export import export
from dna_probe.cli.fit import fit
from dna_probe.cli.locate import locate
from dna_probe.cli.manifest import manifest
from dna_probe.cli.plot import plot
from dna_probe.cli.predict import predict
from dna_probe.cli.serve import serve
from dna_probe.cli.verify import verify
from dna_probe.errors import DnaProbeError

# What typer ends with on Ctrl-C.
INTERRUPTED = 130

app = typer.Typer(
    name="dna-probe",
    help="Find the units of a frozen pretrained model that respond to forgery, and fit a few-shot detector on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo,
    locate,
    fit,
    predict,
    serve,
    evaluate,
    verify,
    export,
    benchmark,
    compare,
    collect,
    audit,
    manifest,
    plot,
    backbones,
):
    app.command()(command)
app.add_typer(cache, name="cache")


@app.callback(invoke_without_command=True)
def top(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        import dna_probe

        typer.echo(dna_probe.__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 2 wrong usage or input, 3 done but images unreadable, 1 else)."""
    try:
        with plain_warnings():
            app(args=list(arguments) if arguments is not None else None, prog_name="dna-probe")
    except SystemExit as end:
        status = int(end.code or 0)
        return interrupted() if status == INTERRUPTED else status
    except DnaProbeError as error:
        typer.echo(f"dna-probe: {error}", err=True)
        return 2
    except KeyboardInterrupt:
        return interrupted()
    return 0


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings about the cache as lines for people, without the place in the code."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        from dna_probe.cache import CacheWarning

        if issubclass(category, CacheWarning):
            typer.echo(f"dna-probe: {message}", err=True)
        else:
            shown(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def interrupted() -> int:
    typer.echo("dna-probe: interrupted", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
