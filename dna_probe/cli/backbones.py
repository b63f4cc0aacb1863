from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def backbones(
    pattern: Annotated[str, typer.Argument(help="Glob over names, for example 'vit_small*'.")] = "*",
    check: Annotated[
        str | None, typer.Option("--check", help="Try the whole contract on this model: a name, or FILE.py:factory.")
    ] = None,
    weights: shared.Weights = None,
    random_weights: shared.RandomWeights = False,
    device: shared.Device = "auto",
    json: shared.Json = False,
) -> None:
    """List what can be probed, or try the contract on a model of your own."""
    if check is not None:
        _check(check, weights, random_weights, device, json)
    else:
        _list(pattern, json)


def _list(pattern: str, json: bool) -> None:
    from dna_probe.backbones import list_backbones
    from dna_probe.errors import BackboneError

    found = list_backbones(pattern)
    if not found:
        raise BackboneError(f"No backbone matches {pattern!r}", fix="Try a wider glob, for example '*vit*'")
    if json:
        shared.echo_json({"schema": "dna_probe.backbones/1", "backbones": [entry.to_json() for entry in found]})
        return
    rows = [
        (
            entry.name,
            entry.family,
            "" if entry.parameters is None else f"{entry.parameters / 1e6:.1f} M",
            entry.takes,
            entry.code_licence,
            entry.licence,
            entry.needs,
        )
        for entry in found
    ]
    title = f"{len(found)} backbones" if len(found) > 1 else "1 backbone"
    columns = ["name", "family", "parameters", "takes", "licence of the code", "of the weights", "needs"]
    shared.echo_table(title, columns, rows)


def _check(name: str, weights: Path | None, random_weights: bool, device: str, json: bool) -> None:
    from dna_probe.backbones.checking import check_backbone

    backbone = shared.make_backbone(name, weights, device, random_weights)
    checks = check_backbone(backbone)
    broken = [check for check in checks if check.verdict == "no"]
    if json:
        found = {"schema": "dna_probe.backbone_check/1", "backbone": backbone.name, "family": backbone.family}
        shared.echo_json({**found, "checks": [c.to_json() for c in checks], "notes": list(backbone.notes)})
    else:
        shared.echo_table(repr(backbone), ["promise", "kept", ""], [(c.promise, c.verdict, c.told) for c in checks])
        for note in backbone.notes:
            typer.echo(f"Note: {note}.")
        kept = "It keeps the whole contract: locate, score, fit and predict work on it."
        lost = f"{len(broken)} of {len(checks)} promises are broken: do not trust figures measured on it."
        typer.echo(lost if broken else kept)
    if broken:
        raise typer.Exit(1)
