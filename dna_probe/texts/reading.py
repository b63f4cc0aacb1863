"""One text in, one normalised text or a plain reason out."""

from __future__ import annotations

import codecs
from pathlib import Path

from dna_probe.content import open_content
from dna_probe.errors import UnreadableSample
from dna_probe.images.sources import StoredImage, is_stored
from dna_probe.images.tables import MANIFEST_SUFFIXES
from dna_probe.texts.mojibake import repair_mac_roman

MAX_BYTES = 10_000_000
# Zero-width spaces, word joiners, soft hyphens: left by layout programs, and seen by no reader.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\u00ad"))


def read_text(source: str | Path | StoredImage, name: str | None = None) -> str:
    """The text of a file (`Path`) or stored source, or the text that a `str` is, freed of what betrays its source.

    Files are UTF-8, with or without byte-order mark, or UTF-16 with one. Whoever gathers texts gets the human ones from
    elsewhere than the generated ones, through other programs; a detector would learn these. So characters decoded
    wrongly are repaired (ftfy, and see `repair_mac_roman`), HTML entities, ligatures, control and invisible characters
    are resolved, accents composed (Unicode NFC), typographic quotation marks and apostrophes made straight, and each
    run of white space, line breaks too, made one space: editors and web pages set these, hardly ever the writer.
    Dashes, capitals, spelling and punctuation stay as they are.

    Raises `UnreadableSample` where there is no text: a file that is missing, empty, larger than 10 MB, a table or in
    another encoding, and nothing but white space.
    """
    if name is None:
        name = str(source) if isinstance(source, Path) else source.name if is_stored(source) else "the text"
    if isinstance(source, str):
        _check_size(len(source), name)
        return _normalise(source, name)
    if isinstance(source, Path) and source.suffix.lower() in MANIFEST_SUFFIXES:
        raise UnreadableSample(name, "a table of texts, not one text", "give it by itself")
    if isinstance(source, Path) or is_stored(source):
        with open_content(source, name) as stream:
            content = stream.read(MAX_BYTES + 1)
        _check_size(len(content), name)
        return _normalise(_decode(content, name), name)
    raise UnreadableSample(name, f"a {type(source).__name__} is no text and no file")


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise UnreadableSample(name, f"too long: more than {MAX_BYTES / 1e6:g} MB", "cut it into documents")


def _decode(content: bytes, name: str) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16, as its first bytes say" if wide else "UTF-8"
        raise UnreadableSample(name, f"not {encoding} (see byte {error.start})", "save it as UTF-8") from None
    if "\0" in text:
        reason = "not a text: it holds null characters, as binary files and UTF-16 without a byte-order mark do"
        raise UnreadableSample(name, reason, "save it as UTF-8")
    return text


def _normalise(text: str, name: str) -> str:
    import ftfy

    # Left to itself ftfy leaves entities alone where the text holds a "<", and smileys do.
    settings = ftfy.TextFixerConfig(unescape_html=True, uncurl_quotes=True, normalization="NFC", explain=False)
    fixed = ftfy.fix_text(repair_mac_roman(text), settings)
    words = fixed.translate(_INVISIBLE).split()
    if not words:
        raise UnreadableSample(name, "no text: nothing but white space" if text else "no text: it is empty")
    return " ".join(words)
