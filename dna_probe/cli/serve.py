from __future__ import annotations

import ipaddress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dna_probe.cli import arguments as shared
from dna_probe.errors import needs_extra

# What any image may have, and how many samples may wait at once.
MAX_PIXELS, MAX_FILES = 100_000_000, 1024
# Module -> the package that brings it.
NEEDED = {
    "fastapi": "FastAPI",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def serve(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote, or file that 'export' wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others can reach all but the loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a request.")] = 64 << 20,
    max_pixels: Annotated[int, typer.Option(min=1, max=MAX_PIXELS, help="Most pixels of an image.")] = 50_000_000,
    max_files: Annotated[
        int, typer.Option(min=1, max=MAX_FILES, help="Most files in a request to /predict/batch.")
    ] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Most samples in one forward pass.")] = 32,
    wait_ms: Annotated[int, typer.Option(min=0, help="How long a sample waits for others to be judged with.")] = 10,
    device: shared.Device = "auto",
    weights: shared.Weights = None,
    workers: shared.Workers = 2,
    quiet: shared.Quiet = False,
) -> None:
    """Serve a detector over HTTP, with a page to drop an image on."""
    for module, package in NEEDED.items():
        if find_spec(module) is None:
            raise needs_extra("'dna-probe serve'", package, "serve")
    from dna_probe.artefacts import open_detector
    from dna_probe.collection import Options
    from dna_probe.detector import Detector
    from dna_probe.serving.application import create_application, model_version
    from dna_probe.serving.batching import Batcher
    from dna_probe.serving.metrics import Metrics
    from dna_probe.serving.server import listen, run
    from dna_probe.serving.uploads import Limits

    fitted = open_detector(detector, weights=weights, device=device)
    if isinstance(fitted, Detector):
        fitted = fitted.compile()
    listening = listen(host, port)
    if not _is_loopback(host):
        typer.echo(
            f"warning: {host} can be reached from other machines, and anyone there may use this service: it knows no "
            "passwords and no encryption. Put a proxy that does before it, or listen on 127.0.0.1",
            err=True,
        )
    version = model_version(detector, fitted)
    metrics = Metrics(version, fitted.name)
    options = Options(batch_size=max_batch, workers=workers)
    batcher = Batcher(fitted, options, max_batch, wait_ms / 1000, metrics.count_batch)
    application = create_application(fitted, version, batcher, metrics, Limits(max_bytes, max_pixels, max_files))

    def ready() -> None:
        if not quiet:
            address, bound = listening.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            typer.echo(f"serving {detector} (model {version}) on http://{shown}:{bound}", err=True)

    run(application, listening, ready)
    if not quiet:
        typer.echo("stopped", err=True)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
