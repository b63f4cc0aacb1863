"""Texts are read whole, freed of what betrays their source, or refused with a reason."""

# Typographic quotation marks and dashes are what is tested.
# ruff: noqa: RUF001

import codecs
import csv
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dna_probe.content import StoredSample
from dna_probe.errors import DataError, UnreadableSample
from dna_probe.images.reading import UnreadableImage
from dna_probe.texts import reading
from dna_probe.texts.mojibake import repair_mac_roman
from dna_probe.texts.reading import read_text


def write(folder, content, name="a.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "Zoë's tea".encode(),
        codecs.BOM_UTF8 + "Zoë's tea".encode(),
        "Zoë's tea".encode("utf-16"),
        codecs.BOM_UTF16_BE + "Zoë's tea".encode("utf-16-be"),
        unicodedata.normalize("NFD", "Zoë's tea").encode(),
        "Zoë’s tea".encode().decode("cp1252").encode(),
        "\u200b Zoë’s\xa0\r\n\t tea\u00ad\n".encode(),
    ],
    ids=["utf-8", "mark", "utf-16", "big-endian", "decomposed", "mis-decoded", "layout"],
)
def test_one_text_however_it_is_stored(tmp_path, content):
    path = write(tmp_path, content)
    assert read_text(path) == "Zoë's tea"
    assert read_text(StoredSample("x.csv:3", content, "text")) == "Zoë's tea"


def test_a_string_is_the_text_even_if_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "inside").parent)
    assert read_text("a.txt") == "a.txt" and read_text(Path("a.txt")) == "inside"


def test_what_the_writer_chose_stays():
    text = "WELL - he said: «non» — twice… and left!! naïve cafe"
    assert read_text(text) == text
    assert read_text("“Don’t”, she said; ‘fine’.") == "\"Don't\", she said; 'fine'."
    assert read_text("fish &amp; chips") == "fish & chips"
    assert read_text("fish &amp; chips <3") == "fish & chips <3"


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file (0 bytes)"),
        (b" \n\t ", "no text: nothing but white space"),
        ("\ufeff\u200b".encode(), "no text: nothing but white space"),
        (b"caf\xe9 noir", "not UTF-8 (see byte 3)"),
        (codecs.BOM_UTF16_LE + b"a\0b", "not UTF-16, as its first bytes say (see byte 4)"),
        (
            "plain".encode("utf-16-le"),
            "not a text: it holds null characters, as binary files and UTF-16 without a byte-order mark do",
        ),
    ],
)
def test_files_that_hold_no_text(tmp_path, content, reason):
    path = write(tmp_path, content)
    with pytest.raises(UnreadableSample) as caught:
        read_text(path)
    assert caught.value.reason == reason and caught.value.name == str(path)
    assert str(caught.value).startswith(f"Cannot read {path}: {reason}.")


def test_places_where_no_text_can_be(tmp_path):
    class Broken:
        name = "a.zip::b.txt"

        def read_bytes(self):
            raise OSError("damaged member")

    for source, name, reason in (
        (tmp_path / "no.txt", None, "no such file"),
        (tmp_path, None, "a folder, not a file"),
        (Path("/dev/null"), None, "not a plain file"),
        (Path("a\0b"), "x", "cannot be opened (embedded null byte)"),
        (Broken(), "a.zip::b.txt", "cannot be opened (damaged member)"),
        ("", "the text", "no text: it is empty"),
        (" \n", "row 3", "no text: nothing but white space"),
        (7, "the text", "a int is no text and no file"),
    ):
        with pytest.raises(UnreadableSample) as caught:
            read_text(source, None if name in ("the text", "a.zip::b.txt") else name)
        assert (caught.value.name, caught.value.reason) == (name or str(source), reason)


def test_too_long_is_told_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    assert len(read_text("x" * 1000)) == 1000
    for source in ("x" * 1001, write(tmp_path, b"\xff" * 1001)):
        with pytest.raises(UnreadableSample, match=r"too long: more than 0\.001 MB\. cut it into documents"):
            read_text(source)


def test_the_error_of_every_modality():
    error = UnreadableSample("a.txt", "empty file (0 bytes)", "remove it")
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, again.reason, str(again)) == ("a.txt", "empty file (0 bytes)", str(error))
    assert isinstance(error, DataError) and str(error) == "Cannot read a.txt: empty file (0 bytes). remove it."
    image = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "too small")))
    assert isinstance(image, UnreadableSample) and type(image) is UnreadableImage and image.reason == "too small"


@pytest.mark.parametrize(
    "meant",
    [
        "it’s an ideal retreat",
        "we don’t mind",
        "a bed.\xa0The property",
        "in the city’s lively heart",
        "since the 1930’s",
        "vintage décor",
        "one table – two chairs",
        "our “granny cottage” here",
        "as you can imagine… things went well",
        "a friendly backyard—great for your dog",
    ],
)
def test_windows_texts_read_on_a_macintosh(meant):
    misread = meant.encode("cp1252").decode("mac_roman")
    assert misread != meant and repair_mac_roman(misread) == meant
    assert repair_mac_roman(meant) == meant


@pytest.mark.parametrize(
    "text",
    [
        "París es la capital del país; aquí vivís, decís y escribís.",
        "We met Luís Solís and the mayor of París.",
        "Nación, corazón y adiós; ¿cómo están los niños?",
        "Così è la città, lì e così via",
        "Müller, Größe, Übermut, façade, crème brûlée, Ångström",
        "Szelídíti a kis nyulat; Kraków, Łódź, Öl",
        "See the note† and Smith†, who died.",
        "Plain English, it's fine.",
        "The façade of Bostonís town hall",
    ],
)
def test_languages_that_use_these_letters_stay(text):
    assert repair_mac_roman(text) == text


@given(st.text())
def test_a_text_is_one_line_or_an_unreadable_sample(text):
    try:
        found = read_text(text)
    except UnreadableSample:
        return
    assert found and found == " ".join(found.split())


@pytest.mark.real
def test_real_texts_lose_what_told_them_apart(shared_data):
    with open(shared_data / "text" / "rentals.csv", encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    strange = re.compile("[†íÈìñÖ\n]")
    assert sum(bool(strange.search(row)) for row in rows) > 35
    # "St. Joeís" alone is as good as a Spanish name.
    assert sum(bool(strange.search(read_text(row))) for row in rows) <= 1
