from __future__ import annotations

from typing import Annotated

import typer

from dna_probe.cli import arguments as shared


def backbones(
    pattern: Annotated[str, typer.Argument(help="Glob over names, for example 'vit_small*'.")] = "*",
    json: shared.Json = False,
) -> None:
    """List what can be probed."""
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
            " x ".join(str(side) for side in entry.input_size),
            entry.licence,
        )
        for entry in found
    ]
    title = f"{len(found)} backbones" if len(found) > 1 else "1 backbone"
    shared.echo_table(title, ["name", "family", "parameters", "input", "licence of the weights"], rows)
