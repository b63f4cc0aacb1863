"""What clients wait for a service under load, beside the time of one full batch.

python benchmarks/serving.py runs/det                   64 clients at once, five requests each
python benchmarks/serving.py runs/det.onnx --clients 8
"""

import io
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

SIZE = (400, 300)


def main(
    detector: Annotated[Path, typer.Argument(help="Folder that 'fit' wrote, or file that 'export' wrote; of images.")],
    clients: Annotated[int, typer.Option(help="Clients that ask at once.")] = 64,
    requests: Annotated[int, typer.Option(help="Requests of each, one after the other.")] = 5,
    batch: Annotated[int, typer.Option(help="Most images in one forward pass.")] = 32,
) -> None:
    command = [sys.executable, "-m", "dna_probe", "serve", str(detector), "--port", "0", "--max-batch", str(batch)]
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = address(service)
        images = [photograph(number) for number in range(max(clients, batch))]
        whole = float(np.median([seconds_of_batch(url, images[:batch]) for _ in range(5)]))
        start = time.perf_counter()
        waited, failed = under_load(url, images[:clients], requests)
        took = time.perf_counter() - start
    finally:
        service.terminate()
        ended = service.wait()
    table = Table("what", "measured", title=f"{detector}: {clients} clients at once, {requests} requests each")
    middle, slow = np.quantile(waited, (0.5, 0.99))
    table.add_row(f"one batch of {batch}, s", f"{whole:.2f}")
    table.add_row("median wait, s", f"{middle:.2f}")
    table.add_row("99th percentile, s", f"{slow:.2f}")
    table.add_row("99th percentile / one batch", f"{slow / whole:.2f}")
    table.add_row("images per second", f"{len(waited) / took:.1f}")
    table.add_row("requests that failed", str(failed))
    table.add_row("status at the end", str(ended))
    Console(width=100).print(table)


def address(service: subprocess.Popen[str]) -> str:
    """Where it listens, which it says once it is ready. Raises ``SystemExit`` with what it says instead."""
    told = []
    for line in service.stderr or ():
        if found := re.search(r"http://\S+", line):
            return found[0]
        told.append(line)
    raise SystemExit("".join(told))


def photograph(seed: int) -> bytes:
    stream = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(SIZE).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def seconds_of_batch(url: str, images: list[bytes]) -> float:
    start = time.perf_counter()
    answer = httpx.post(f"{url}/predict/batch", files=[("file", ("a.jpg", image)) for image in images], timeout=600)
    answer.raise_for_status()
    return time.perf_counter() - start


def under_load(url: str, images: list[bytes], requests: int) -> tuple[list[float], int]:
    """Seconds that each request of a client per image waited, all started together, and how many failed."""
    together, waited, failed = threading.Barrier(len(images)), [], []

    def ask(image: bytes) -> None:
        with httpx.Client(base_url=url, timeout=600) as client:
            client.get("/health")
            together.wait()
            for _ in range(requests):
                start = time.perf_counter()
                answer = client.post("/predict", files={"file": ("a.jpg", image)})
                waited.append(time.perf_counter() - start)
                if answer.is_error:
                    failed.append(answer.text)

    with ThreadPoolExecutor(len(images)) as pool:
        list(pool.map(ask, images))
    return waited, len(failed)


if __name__ == "__main__":
    typer.run(main)
