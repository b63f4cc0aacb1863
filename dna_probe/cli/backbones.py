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
    columns = list(found[0].to_json())
    shared.echo_table(f"{len(found)} backbones", columns, [list(entry.to_json().values()) for entry in found])
