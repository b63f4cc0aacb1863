"""Texts of Windows that were read as texts of an old Macintosh, repaired: `itís dÈcor` was `it's décor`.

ftfy repairs UTF-8 that was read as something else. Spreadsheets on a Macintosh also read Windows-1252 as Mac Roman,
where every character stays one character, so that only the places at which they stand give them away.
"""

from __future__ import annotations

import re

# Five codes mean nothing in Windows-1252; those below 0x80 are the same in both.
_CODES = [bytes([code]) for code in range(0x80, 0x100) if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)]
_MEANT = {ord(code.decode("mac_roman")): code.decode("cp1252") for code in _CODES}

# What stands so in no language, or in none but English.
_EVIDENCE = re.compile(
    r"""
      \w[.,;:!?]?†[A-Za-z]                              # a no-break space: daggers stand behind a word, before a blank
    | [a-z][ÈËÒ‡‰](?=[a-z])                             # é ë ñ à ä: capitals and signs inside a word
    | (?<!\w)ñ(?!\w)                                    # a dash
    | (?<!\w)ì(?=\w)                                    # an opening quotation mark
    | [a-z]Ö(?=\s|$)                                    # three dots
    | \b(?:\d+|[A-Z]{2,})ís\b                           # an apostrophe
    | \b(?i:(?:I|you|we|they)í(?:m|re|ve|ll|d))\b
    | \b(?i:(?:it|he|she|that|there|here|what|who|let)ís)\b
    | \b(?i:(?:are|ca|could|did|do|does|had|has|have|is|should|was|were|wo|would)nít)\b
    """,
    re.VERBOSE,
)
# Names such as Solís end so too; with four letters before it, and beside English words, it is a genitive.
_GENITIVE = re.compile(r"[A-Za-z]{4,}ís\b|[A-Za-z]{3,}ó[A-Za-z]{3,}")
_ENGLISH = re.compile(r"\b(?:and|is|of|our|the|this|to|with|your)\b", re.IGNORECASE)
# Punctuation and letters that are in order, and that hardly any text would hold had it been misread.
_IN_ORDER = re.compile("[–—…•‘’“”áàâäãåçéèêòöõúùûü]")  # noqa: RUF001


def repair_mac_roman(text: str) -> str:
    """The text as it was meant if it is Windows-1252 read as Mac Roman, else the very same text.

    It is repaired as a whole where one place in it gives it away and no character in it speaks against that.
    """
    misread = _EVIDENCE.search(text) or (_ENGLISH.search(text) and _GENITIVE.search(text))
    return text.translate(_MEANT) if misread and not _IN_ORDER.search(text) else text
