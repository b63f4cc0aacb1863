"""Labelled texts and recordings are found however they lie, and images as ever."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dna_probe.audio.reading import encode_audio, read_audio
from dna_probe.content import StoredSample
from dna_probe.errors import DataError
from dna_probe.images.sets import ImageSet, join
from dna_probe.samples import as_sources, guess_modality, read_samples, read_unlabelled_samples
from dna_probe.texts.reading import read_text

WAVE = np.sin(np.arange(800) * 0.3).astype(np.float32)


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".md"):
            path.write_text(f"This is {name}.")
        elif path.suffix in (".png", ".jpg"):
            Image.new("RGB", (9, 9), (len(name), 0, 0)).save(path)
        else:
            path.write_bytes(encode_audio(WAVE * len(name), 8000))
    return root


def zip_up(path, folder, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(folder / name, name)
    return path


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        frame = pandas.DataFrame(rows)
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def write_classes(path, columns, names):
    """A parquet table as `datasets` writes it: numbers for labels, and what they are called in the schema."""
    features = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata({"huggingface": features}), path)
    return path


ROWS = [
    {"text": "One, two.", "label": "human", "generator": "", "title": "Numbers", "split": "train"},
    {"text": "Uno, dos.", "label": "ai", "generator": "gpt", "title": " numbers ", "split": "train"},
    {"text": "A b\nc.", "label": "0", "generator": "", "title": "Letters", "split": "validation"},
    {"text": "", "label": "1", "generator": "gpt", "title": "Nothing", "split": "test"},
    {"text": "X y.", "label": "generated", "generator": "llama", "title": "", "split": "test"},
]


# Texts


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_tables_of_texts(tmp_path, suffix):
    path = write_table(tmp_path / f"essays{suffix}", ROWS)
    for made in (read_samples(path), read_samples(str(path), "manifest", "text"), read_samples(tmp_path)):
        assert made.modality == "text" and made.labels.tolist() == [0, 1, 0, 1]
        assert made.generators == ("real", "gpt", "real", "llama") and made.splits == ("train", "train", "val", "test")
        assert made.groups[:3] == ("numbers", "numbers", "letters") and made.groups[3] == made.names[3]
        assert [read_text(source) for source in made.images] == ["One, two.", "Uno, dos.", "A b c.", "X y."]
        assert [reason for _, reason in made.skipped] == ["has no text"]
        assert made.layout == (
            "table: text in 'text', label in 'label', generator in 'generator', split in 'split', group in 'title', "
            "splits train, val and test"
        )
    # A row goes by the line that an editor shows (that of its end, where it has several), or its number.
    rows = {".csv": (2, 7), ".tsv": (2, 7), ".parquet": (0, 4)}.get(suffix, (1, 5))
    made = read_samples(path)
    assert (made.names[0], made.names[-1]) == tuple(f"{path}:{row}" for row in rows)
    assert made.describe() == f"{path} (texts): 2 real, 2 fake (gpt 1, llama 1), 1 skipped"


def test_a_cell_may_be_longer_than_pythons_csv_reader_likes(tmp_path):
    import csv

    limit = csv.field_size_limit()
    path = write_table(tmp_path / "a.csv", [{"text": "word " * 50_000, "label": 0}, {"text": "short", "label": 1}])
    assert len(read_samples(path)) == 2 and csv.field_size_limit() == limit


def test_repeated_and_contradicting_texts(tmp_path):
    rows = [{"text": "Same  text", "label": 0}, {"text": "Same text ", "label": 0}, {"text": "Other", "label": 1}]
    path = write_table(tmp_path / "a.csv", rows)
    made = read_samples(path)
    assert len(made) == 2 and made.skipped == ((f"{path}:3", f"listed twice (Row 2 of {path} and Row 3 of {path})"),)
    write_table(path, [*rows, {"text": "Other", "label": "human"}])
    with pytest.raises(DataError, match=r"One text is listed as machine and as human\. \(Row 4 of .*csv and Row 5 of"):
        read_samples(path)


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"text": "a", "label": "cat"}], "Row 2 of .* has the unknown label 'cat'. labels are 0, real or human"),
        ([{"text": "a"}], "has no column 'label'. its columns are text. text and label are needed"),
        ([{"text": "", "label": 1}], "No texts in .*a.csv. no row of it holds a text"),
        ([{"essay": "a", "label": 1}], "has no column 'text'. its columns are essay, label. text and label are needed"),
    ],
)
def test_wrong_tables_of_texts(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        read_samples(write_table(tmp_path / "a.csv", rows), modality="text")


def test_a_damaged_table_beside_good_ones_is_listed(tmp_path):
    good = write_table(tmp_path / "a.csv", ROWS)
    (tmp_path / "b.csv").write_text("label,text\n0,Hello, dear world.\n")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    (tmp_path / "dataset_info.json").write_text('{"splits": []}')
    made = read_samples(tmp_path)
    assert made.names[0] == f"{good}:2" and len(made) == 4
    assert [name for name, _ in made.skipped] == [
        *(f"{good}:6", str(tmp_path / "c.parquet"), str(tmp_path / "b.csv")),
    ]
    assert made.skipped[2][1].startswith("damaged: Row 2 of ") and made.skipped[1][1].startswith("damaged: Parquet")
    with pytest.raises(DataError, match=r"Row 2 of .* has more cells than the header. put cells that hold"):
        read_samples(tmp_path / "b.csv", modality="text")


def test_what_lies_unread_beside_class_folders_is_told(tmp_path):
    write_table(plant(tmp_path, "human/a.txt", "ai/b.txt") / "essays.csv", ROWS)
    zip_up(tmp_path / "more.zip", tmp_path, "human/a.txt")
    assert read_samples(tmp_path).layout.endswith("; beside the texts, not read: 1 table and 1 zip")


def test_parquet_of_texts_as_published(tmp_path):
    write_table(plant(tmp_path, "README.md") / "data" / "train-00000-of-00001.parquet", ROWS)
    made = read_samples(tmp_path)
    assert made.modality == "text" and len(made) == 4
    assert [one.name for one in read_unlabelled_samples(tmp_path, "text")] == list(made.names)


def test_folders_of_texts(tmp_path):
    plant(tmp_path, "human/1.txt", "human/2.md", "machine/gpt/gpt_1.txt", "machine/llama/x/1.txt", "README.md")
    for made in (read_samples(tmp_path), read_samples(tmp_path, "folders", "text")):
        assert made.modality == "text" and made.counts() == {"real": 2, "gpt": 1, "llama": 1}
        assert made.groups[0] == made.groups[2] == made.groups[3] == "1" != made.groups[1]
        assert made.skipped == ((str(tmp_path / "README.md"), "lies in no folder that names its class"),)
        assert made.layout == "folders: class folders 'human' and 'machine', generator below them, no splits"


@pytest.mark.parametrize(
    "names",
    [
        ("real/a.txt", "fake/gpt/b.txt"),
        ("Human/a.txt", "AI/gpt/b.txt"),
        ("set/human/a.txt", "set/ai/gpt/b.txt"),
        ("gpt/0_real/a.txt", "gpt/1_fake/b.txt"),
        ("human/a.txt", "generated/gpt/b.txt"),
    ],
)
def test_names_of_the_classes(tmp_path, names):
    made = read_samples(plant(tmp_path, *names))
    assert sorted(zip(made.generators, made.labels.tolist(), strict=True)) == [("gpt", 1), ("real", 0)]


def test_splits_of_folders_keep_equal_names_apart(tmp_path):
    names = [f"{split}/{kind}/1.txt" for split in ("train", "test") for kind in ("human", "machine")]
    made = read_samples(plant(tmp_path, *names))
    assert set(made.groups) == {"train/1", "test/1"} and Counter(made.splits) == {"train": 2, "test": 2}


def test_texts_in_a_zip(tmp_path):
    names = "human/1.txt", "machine/gpt/1.txt"
    made = read_samples(zip_up(tmp_path / "a.zip", plant(tmp_path / "files", *names), *names))
    assert made.modality == "text" and made.counts() == {"real": 1, "gpt": 1} and len(set(made.groups)) == 1
    assert read_text(made.images[0]) == "This is human/1.txt."


def test_texts_in_memory(tmp_path):
    path = plant(tmp_path, "a.txt") / "a.txt"
    made = read_samples((["One text.", "Another one.", path, str(path)], ["human", "ai", 0, 1]))
    assert made.modality == "text" and made.labels.tolist() == [0, 1, 0, 1] and made.origin == "texts in memory"
    assert made.names == ("texts[0]", "texts[1]", str(path), str(path)) and made.subset([1]).names == ("texts[1]",)
    assert [read_text(source) for source in made.images[:2]] == ["One text.", "Another one."]
    assert made.fingerprint() != read_samples((["One text.", "Other.", path, path], [0, 1, 0, 1])).fingerprint()
    assert made.describe() == "texts in memory: 2 real, 2 fake (fake 2)"
    assert read_samples((iter(["a b", "c d"]), [0, 1], "gh")).groups == ("g", "h")


@pytest.mark.parametrize("kind", [lambda labels: pandas.Series(labels, index=[7, 8, 9]), iter, np.array, tuple])
def test_labels_of_any_sort(kind):
    texts = ["a b", "c d", "e f"]
    assert read_samples((texts, kind([0, 1, 0]))).labels.tolist() == [0, 1, 0]
    assert read_samples((texts, kind(["human", "ai", "real"]))).labels.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="Unknown label 'cat'"):
        read_samples((texts, kind(["human", "ai", "cat"])))


@pytest.mark.parametrize(
    "data, words",
    [
        (("a text", [0]), "A list of texts is needed, not the single one 'a text'"),
        ((["a", 5], [0, 1]), r"texts\[1\] is a int. give texts as strings, and files as Path"),
        ((["a", "b"], [0]), "2 texts but 1 labels. give one label for each text"),
        ((["a"], ["cat"]), "Unknown label 'cat'"),
        (([], []), "No texts were given"),
        ((["a"],), "A tuple of 1 is no text set. give "),
        (["a", "b"], r"A list is no text set. give a folder, a table, or the tuple \(texts, labels\)"),
    ],
)
def test_wrong_texts_in_memory(data, words):
    with pytest.raises(DataError, match=words):
        read_samples(data, modality="text")


# Recordings


def test_folders_of_recordings(tmp_path):
    names = ["real/a_gt_1.wav", "real/b_gt_2.flac", "fake/hifi/a_hifi_1.wav", "fake/hifi/b_hifi_2.mp3"]
    made = read_samples(plant(tmp_path, *names, "fake/mel_v2/a_mel_v2_1.ogg", "fake/mel_v2/c_mel_v2_3.wav"))
    assert made.modality == "audio" and made.counts() == {"real": 2, "hifi": 2, "mel_v2": 2}
    groups = dict(zip((Path(name).stem for name in made.names), made.groups, strict=True))
    assert groups["a_gt_1"] == groups["a_hifi_1"] == groups["a_mel_v2_1"] == "a_1"
    assert groups["b_gt_2"] == groups["b_hifi_2"] == "b_2" and groups["c_mel_v2_3"].endswith("c_mel_v2_3.wav")
    assert made.describe() == f"{tmp_path} (recordings): 2 real, 4 fake (hifi 2, mel_v2 2)"


def test_equal_stems_and_suffixed_stems_are_one_sentence(tmp_path):
    names = [
        f"{folder}/LJ001-000{n}{end}.wav" for n in (1, 2) for folder, end in (("bonafide", ""), ("spoof/w", "_gen"))
    ]
    made = read_samples(plant(tmp_path, *names))
    assert sorted(Counter(made.groups).values()) == [2, 2] and made.counts() == {"real": 2, "w": 2}


def test_folders_name_the_sentence_where_all_files_have_one_name(tmp_path):
    names = [f"{folder}/{n}/audio.wav" for n in "xyz" for folder in ("real", "fake/hifi")]
    made = read_samples(plant(tmp_path, *names))
    assert sorted(Counter(made.groups).items()) == [(f"{n}/audio", 2) for n in "xyz"]


def test_recordings_of_any_suffix(tmp_path):
    names = [f"{folder}/{suffix}.{suffix}" for folder in ("real", "fake") for suffix in ("opus", "aiff", "caf", "m4a")]
    assert len(read_samples(plant(tmp_path, *names), modality="audio")) == 8
    assert guess_modality(tmp_path) == "audio"


def test_manifests_of_recordings(tmp_path):
    plant(tmp_path, "wavs/a_real.wav", "wavs/a_tts.wav", "wavs/b_real.wav")
    rows = [
        {"path": "wavs/a_real.wav", "label": "bonafide", "generator": "", "text": "hello"},
        {"path": "wavs/a_tts.wav", "label": "spoof", "generator": "tts", "text": "hello"},
        {"path": "wavs/b_real.wav", "label": "bonafide", "generator": "", "text": "world"},
    ]
    path = write_table(tmp_path / "list.csv", rows)
    for made in (read_samples(path), read_samples(tmp_path), read_samples(tmp_path, "manifest")):
        assert made.modality == "audio" and made.labels.tolist() == [0, 1, 0] and made.generators[1] == "tts"
        assert made.groups[0] == made.groups[1] != made.groups[2]
    grouped = write_table(tmp_path / "list.csv", [row | {"group": row["text"]} for row in rows])
    assert read_samples(grouped).groups == ("hello", "hello", "world")


@pytest.mark.parametrize("names, labels", [(["bonafide", "spoof"], [0, 1]), (["spoof", "bonafide"], [1, 0])])
def test_class_names_written_by_hugging_face(tmp_path, names, labels):
    sound = {"bytes": encode_audio(WAVE, 8000), "path": "a.wav"}
    path = write_classes(tmp_path / "x.parquet", {"audio": [sound, sound], "label": [0, 1]}, names)
    made = read_samples(path)
    assert made.modality == "audio" and made.labels.tolist() == labels and len(read_audio(made.images[1], 8000)) == 800
    plant(tmp_path, "a.txt", "b.txt")
    words = ["human" if label == 0 else "machine" for label in labels]
    listed = read_samples(write_classes(path, {"path": ["a.txt", "b.txt"], "label": [0, 1]}, words))
    assert listed.modality == "text" and listed.labels.tolist() == labels


def test_recordings_in_memory(tmp_path):
    path = plant(tmp_path, "a.wav") / "a.wav"
    made = read_samples(([(WAVE, 8000), (np.stack([WAVE, WAVE]), 8000), path, WAVE], [0, 1, 0, 1]))
    assert made.modality == "audio" and made.origin == "recordings in memory"
    assert made.names == ("recordings[0]", "recordings[1]", str(path), "recordings[3]")
    assert np.array_equal(read_audio(made.images[0], 8000), read_audio(made.images[1], 8000))
    assert len(read_audio(made.images[0], 16000)) == 1600
    assert made.fingerprint() != read_samples(([(WAVE, 8000)] * 4, [0, 1, 0, 1])).fingerprint()
    with pytest.raises(DataError, match=r"recordings\[1\] cannot be used. 0 is no rate"):
        as_sources([(WAVE, 1), (WAVE, 0)], "audio")


# Any modality


def test_guesses(tmp_path):
    for folder, names in {
        "captions": ["real/a.jpg", "real/a.txt", "real/a.caption.txt", "fake/b.jpg", "fake/b.txt"],
        "transcripts": ["real/a.wav", "real/a.txt", "fake/b.wav", "fake/b.txt", "readme.md"],
        "apart": ["real/wav/a.wav", "real/txt/a.txt", "real/txt/a.lab.txt", "fake/wav/b.wav", "fake/txt/b.txt"],
        "essays": ["human/a.txt", "human/b.txt", "cover.png"],
        "equal": ["a.png", "b.txt"],
        "documented": ["a/b.png", "LICENSE.txt", "README.md", "docs/usage.md"],
        "shards": ["README.md"],
        "zipped": ["README.md", "LICENSE.txt"],
        "zipped essays": ["README.md"],
        "listed": ["README.txt"],
        "loose": ["a.txt", "b.txt"],
        "none": [],
    }.items():
        plant(tmp_path / folder, *names)
    zip_up(tmp_path / "zipped" / "set.zip", plant(tmp_path / "equal"), "a.png", "b.txt")
    zip_up(tmp_path / "zipped essays" / "set.zip", tmp_path / "essays", "human/a.txt", "human/b.txt")
    write_table(tmp_path / "shards" / "data" / "train-0.parquet", [{"image": {"bytes": b"x", "path": "x"}, "label": 0}])
    write_table(tmp_path / "listed" / "list.csv", [{"path": "../a.png", "label": 0}])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "settings.json").write_text("{}")
    write_table(tmp_path / "tables" / "texts.csv", ROWS)
    write_table(tmp_path / "tables" / "settings.json", [{"a": 1}])
    for name, modality in {
        "captions": "image",
        "transcripts": "audio",
        "apart": "audio",
        "essays": "text",
        "equal": "image",
        "documented": "image",
        "shards": "image",
        "zipped": "image",
        "zipped/set.zip": "image",
        "zipped essays": "text",
        "listed": "image",
        "loose": "text",
        "none": "image",
        "tables": "text",
        "tables/texts.csv": "text",
        "essays/human/a.txt": "text",
        "transcripts/real/a.wav": "audio",
        "captions/real/a.jpg": "image",
        "missing": "image",
    }.items():
        assert guess_modality(tmp_path / name) == guess_modality(str(tmp_path / name)) == modality, name


@pytest.mark.parametrize(
    "rows, modality",
    [
        ([{"path": "a.jpg", "label": 0, "text": "a cat"}], "image"),
        ([{"image": "a", "label": 0, "text": "a cat"}], "image"),
        ([{"path": "a", "label": 0}], "image"),
        ([{"path": "a.flac", "label": 0, "text": "hello"}], "audio"),
        ([{"path": "a.txt", "label": 0}], "text"),
        ([{"file": "stimuli.csv", "label": 0, "text": "hello"}], "text"),
        ([{"Text": "hello", "label": 0}], "text"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_guesses_about_tables(tmp_path, rows, modality, suffix):
    assert guess_modality(write_table(tmp_path / f"a{suffix}", rows)) == modality


def test_guesses_about_memory(tmp_path):
    picture = np.zeros((9, 9, 3), np.uint8)
    for items, modality in (
        ([picture, picture], "image"),
        (np.stack([picture, picture]), "image"),
        ([Image.new("RGB", (9, 9))], "image"),
        ([Path("a.jpg"), "b.png"], "image"),
        (["missing.jpg", "missing.png"], "image"),
        (["Some words.", "And more.", "See photo.jpg"], "text"),
        ([Path("a.txt")], "text"),
        (["a.mp3", Path("b.ogg")], "audio"),
        ([WAVE], "audio"),
        ([(WAVE, 8000)], "audio"),
        ([WAVE[None]], "audio"),
        ([np.stack([WAVE, WAVE], axis=1)], "audio"),
        ([np.zeros((9, 9), np.uint8)], "image"),
        ([encode_audio(WAVE, 8000)], "audio"),
        ([b"ID3", b"fLaC", b"\xff\xfb\x90"], "audio"),
        ([b"\xff\xd8\xff\xe0", b"\x89PNG", b"RIFF\0\0\0\0WEBP"], "image"),
        ([StoredSample("x", b"", "audio")], "audio"),
        ([], "image"),
    ):
        assert guess_modality((items, [0, 1])) == guess_modality(items) == modality
    assert guess_modality(ImageSet(["x"], [0], modality="text")) == "text" and guess_modality(3) == "image"


def test_images_are_read_as_ever(tmp_path):
    plant(tmp_path, "real/a.png", "fake/sd/b.png", "notes.txt")
    made = read_samples(tmp_path)
    assert made.modality == "image" and made.counts() == {"real": 1, "sd": 1}
    assert made.describe() == f"{tmp_path}: 1 real, 1 fake (sd 1)"
    assert read_samples(made) is made and read_samples(tmp_path, layout="folders").groups == made.groups
    assert read_samples((["a.png"], [0])).images == (Path("a.png"),)


def test_sets_keep_their_modality():
    texts = read_samples((["a b", "c d"], [0, 1]))
    assert texts.subset([1]).modality == texts.of_label(0).modality == join([texts, texts]).modality == "text"
    images = ImageSet([np.zeros((9, 9, 3), np.uint8)], [0])
    with pytest.raises(DataError, match=r"Texts and images cannot be one set. a backbone reads one modality"):
        join([texts, images])
    with pytest.raises(DataError, match="texts in memory holds texts, not recordings"):
        read_samples(texts, modality="audio")
    with pytest.raises(DataError, match=r"Unknown modality 'txet'. Did you mean 'text'"):
        ImageSet([], [], modality="txet")
    assert join([]).modality == images.modality == "image"


def test_errors_say_what_to_do(tmp_path):
    plant(tmp_path, "stuff/a.txt", "stuff/b.wav")
    (tmp_path / "empty").mkdir()
    write_table(tmp_path / "essays" / "list.csv", [{"essay": "a", "label": 1}])
    for path, options, words in (
        (
            "stuff",
            {"modality": "text"},
            "No class folders in .*stuff. it holds 1 texts",
        ),
        (
            "stuff",
            {"modality": "text"},
            "named human or machine, real or fake. arrange them as human/ and machine/<gen",
        ),
        ("stuff", {"modality": "audio"}, "named real or fake, bonafide or spoof. arrange them as real/ and fake/<voc"),
        ("empty", {"modality": "text"}, "No texts in .*empty. looked for md, txt"),
        ("empty", {"modality": "audio"}, "No recordings in .*empty. looked for aac, aif, .*wav, wma"),
        ("empty", {"modality": "text", "layout": "manifest"}, "does not lie as asked. Expected a table of texts"),
        ("essays", {"modality": "text"}, "list.csv has no column 'text'. its columns are essay, label"),
        ("essays", {"modality": "text", "layout": "folders"}, "No texts in .*essays. looked for md, txt"),
        ("stuff/a.txt", {}, "a.txt is no labelled set of texts. give a folder, a zip or tar of one, or a table"),
        ("missing", {"modality": "text"}, "No such folder or table: .*missing. check the spelling"),
        ("stuff", {"modality": "video"}, "Unknown modality 'video'"),
        ("stuff", {"modality": "text", "layout": "genimage"}, "Unknown layout 'genimage'.*the other layouts are those"),
    ):
        with pytest.raises(DataError, match=words):
            read_samples(tmp_path / path, **options)


def test_unlabelled_samples(tmp_path):
    plant(tmp_path, "x/b.txt", "x/a.md", "x/c.wav", "x/d.png", "y.txt")
    table = write_table(tmp_path / "t.csv", [{"text": "Hello."}, {"text": ""}, {"text": "You."}])
    found = read_unlabelled_samples([tmp_path / "x", table, str(tmp_path / "y*.txt"), tmp_path / "x" / "c.wav"], "text")
    assert [str(getattr(one, "name", one)) for one in found] == [
        *("a.md", "b.txt", f"{table}:2", f"{table}:4", "y.txt"),
        "c.wav",
    ]
    assert read_text(found[2]) == "Hello."
    assert read_unlabelled_samples(str(tmp_path / "t*.csv"), "text") == found[2:4]
    assert read_unlabelled_samples(plant(tmp_path, "README.md"), "text") == found[2:4]
    assert read_unlabelled_samples(tmp_path / "x", "audio") == [tmp_path / "x" / "c.wav"]
    assert read_unlabelled_samples([tmp_path / "x"], "image") == [tmp_path / "x" / "d.png"]
    for paths, modality, words in (
        (tmp_path / "x" / "nothing", "audio", "No such file or folder"),
        (tmp_path / "x" / "*.flac", "audio", "No recordings match .*looked for aac, aif, .*wav, wma"),
        ([], "text", "No texts were given. name files, folders or patterns such as 'texts/.*.txt'"),
        (write_table(tmp_path / "u.csv", [{"essay": "a"}]), "text", "has no column 'text'"),
        (tmp_path, "video", "Unknown modality 'video'"),
    ):
        with pytest.raises(DataError, match=words):
            read_unlabelled_samples(paths, modality)


# What is in ../shared/data


@pytest.mark.real
def test_real_rental_descriptions(shared_data):
    for made in (read_samples(shared_data / "text" / "rentals.csv"), read_samples(shared_data / "text")):
        assert made.modality == "text" and made.counts() == {"real": 88, "ChatGPT": 44, "Claude": 44}
        assert made.labels.sum() == 88 and not made.skipped and len(set(made.groups)) == 175
        assert made.names[0].endswith("rentals.csv:2") and all(read_text(source) for source in made.images)


@pytest.mark.real
def test_real_vocoders(shared_data):
    made = read_samples(shared_data / "audio" / "vocoders")
    vocoders = ("HGAN_V1", "HGAN_V2", "HGAN_V3", "MG", "WG", "WN")
    assert made.modality == "audio" and made.counts() == {"real": 10, **dict.fromkeys(vocoders, 10)}
    members = {group: set() for group in made.groups}
    for group, generator in zip(made.groups, made.generators, strict=True):
        members[group].add(generator)
    assert len(members) == 10 and all(makers == {"real", *vocoders} for makers in members.values())
    assert guess_modality(shared_data / "images" / "genai5") == "image"
