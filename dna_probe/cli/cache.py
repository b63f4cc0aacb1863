"""``dna-probe cache``: what runs with ``--cache`` left on disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import DataError

if TYPE_CHECKING:
    from dna_probe.cache import CacheFolder

SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}

cache = typer.Typer(help="List, check or thin out the features that --cache keeps.", no_args_is_help=True)


@cache.command("list")
def list_(folder: shared.Cache = None, json: shared.Json = False) -> None:
    """What is kept: backbones, images, sizes, and when each was last used."""
    from dna_probe.cache import list_cache

    found = list_cache(_named(folder))
    if json:
        kept = [_summary(key) for key in found]
        shared.echo_json({**_head("list", folder), "bytes": sum(key.size for key in found), "folders": kept})
        return
    columns = ["backbone", "weights", "preprocessing", "images", "readings", "size", "last use", "folder"]
    total = _size(sum(key.size for key in found))
    shared.echo_table(f"{folder}: {total}", columns, map(_cells, found))


@cache.command()
def verify(folder: shared.Cache = None, json: shared.Json = False) -> None:
    """Read every shard and name those that are damaged; ends with status 3 if there are any."""
    from dna_probe.cache import verify_cache

    count, faults = verify_cache(_named(folder))
    if json:
        damaged = [{"path": str(fault.path), "error": fault.reason} for fault in faults]
        shared.echo_json({**_head("verify", folder), "shards": count, "damaged": damaged})
    else:
        for fault in faults:
            typer.echo(f"{fault.path}: {fault.reason}")
        typer.echo(f"shards: {count}, damaged: {len(faults)}")
    if faults:
        raise typer.Exit(3)


@cache.command()
def prune(
    folder: shared.Cache = None,
    older_than: Annotated[str | None, typer.Option(help="What no run has opened for so long: 12h, 30d or 8w.")] = None,
    larger_than: Annotated[
        str | None, typer.Option(help="What was used least recently, until no more than this is left: 500MB or 5GB.")
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Shards that are damaged; reads all of them.")] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Only what is kept of this backbone; without another option, all of that.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    json: shared.Json = False,
) -> None:
    """Remove features; what killed runs left half written goes in any case."""
    from dna_probe.cache import prune_cache

    pruned = prune_cache(
        _named(folder),
        older_than=None if older_than is None else _amount(older_than, SECONDS, "--older-than", "30d"),
        larger_than=None if larger_than is None else int(_amount(larger_than, BYTES, "--larger-than", "5GB")),
        damaged=damaged,
        backbone=backbone,
        dry_run=dry_run,
    )
    if json:
        removed = [{"path": str(path), "reason": reason} for path, reason in pruned.removed]
        shared.echo_json({**_head("prune", folder), "dry_run": dry_run, "bytes": pruned.size, "removed": removed})
        return
    for path, reason in pruned.removed:
        typer.echo(f"{path}: {reason}")
    typer.echo(f"files {'to remove' if dry_run else 'removed'}: {len(pruned.removed)}, {_size(pruned.size)}")


def _named(folder: Path | None) -> Path:
    if folder is None:
        raise DataError(
            "No cache was named", "Runs keep features only in the folder given as --cache", "Give the same --cache"
        )
    return folder


def _amount(text: str, units: dict[str, int], option: str, example: str) -> float:
    """A number with a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    known = {unit.lower(): factor for unit, factor in units.items()}
    if not match or match[2].lower() not in known:
        why = f"It takes a number and one of {', '.join(units)}"
        raise DataError(f"{option} {text!r} is not understood", why, f"Write {example}, for example")
    return float(match[1]) * known[match[2].lower()]


def _head(command: str, folder: Path | None) -> dict[str, Any]:
    return {"schema": f"dna_probe.cache_{command}/1", "cache": str(folder)}


def _summary(key: CacheFolder) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "folder": key.path.name,
        "backbone": key.backbone,
        "weight_hash": key.about.get("weight_hash"),
        "preprocessing": key.about.get("preprocessing"),
        "images": key.images,
        "readings": key.readings,
        "shards": len(key.shards),
        "bytes": key.size,
        "last_use": datetime.fromtimestamp(key.last_use, UTC).isoformat(timespec="seconds"),
    }


def _cells(key: CacheFolder) -> tuple:
    from datetime import datetime

    used = datetime.fromtimestamp(key.last_use).strftime("%Y-%m-%d %H:%M")
    weights, preprocessing = str(key.about.get("weight_hash") or "")[:12], _in_words(key.about.get("preprocessing"))
    return key.backbone, weights, preprocessing, key.images, key.readings, _size(key.size), used, key.path.name[:12]


def _in_words(preprocessing: Any) -> str:
    """Enough of a preprocessing to tell it from another of the same backbone."""
    if not isinstance(preprocessing, dict):
        return ""
    if "input_size" not in preprocessing:
        return str(preprocessing.get("modality", ""))
    size = " x ".join(map(str, preprocessing["input_size"]))
    return " ".join(str(part) for part in (size, preprocessing.get("interpolation", "")) if part)


def _size(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)
