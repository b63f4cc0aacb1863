"""Write a figure to a file, whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dna_probe.errors import ArtefactError, DataError
from dna_probe.plots.style import paper_style
from dna_probe.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Metadata without a date: the same figure gives the same bytes.
METADATA: dict[str, dict[str, str | None]] = {
    ".pdf": {"Creator": "dna_probe", "CreationDate": None},
    ".svg": {"Creator": "dna_probe", "Date": None},
    ".png": {"Software": "dna_probe"},
}


def save(figure: Figure, path: str | Path, overwrite: bool = False) -> Path:
    """Write a figure at its own size: PDF with TrueType fonts, SVG with text as text, or PNG at 600 dots per inch.

    Returns:
        The path written.

    Raises:
        DataError: the name ends in none of .pdf, .svg, .png, or the file cannot be written.
        ArtefactError: the file exists and ``overwrite`` is not set.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in METADATA:
        raise DataError(
            f"A figure cannot be saved as {path.name!r}",
            "Its name does not say the format",
            f"End it in {', '.join(METADATA)}",
        )
    if path.exists() and not overwrite:
        raise ArtefactError(
            f"{path} exists", "It would be overwritten", "Give another name, or overwrite it on purpose"
        )
    content = BytesIO()
    with paper_style():
        figure.savefig(content, format=suffix[1:], metadata=METADATA[suffix])
    write_atomically(path, content.getvalue())
    return path
