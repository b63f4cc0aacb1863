"""How long a user waits: import, help and demo, each in a process of its own.

python benchmarks/startup.py
"""

import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

COMMANDS = [
    ("import dna_probe", [sys.executable, "-c", "import dna_probe"], 5, "<= 0.3"),
    ("dna-probe --help", [sys.executable, "-m", "dna_probe", "--help"], 5, "<= 0.6"),
    ("dna-probe demo", [sys.executable, "-m", "dna_probe", "demo", "--quiet"], 1, "<= 90"),
]


def seconds(command: list[str], times: int) -> float:
    """The fastest of some runs after one that warms the file cache."""
    found = []
    for _ in range(times + (times > 1)):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return min(found[-times:])


def main() -> None:
    heavy = "import sys, dna_probe; print([m for m in ('torch', 'timm', 'sklearn', 'matplotlib') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True).stdout.strip()
    table = Table("command", "seconds", "to reach", title=f"heavy packages that import dna_probe loads: {loaded}")
    for name, command, times, goal in COMMANDS:
        table.add_row(name, f"{seconds(command, times):.2f}", goal)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
