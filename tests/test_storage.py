"""Folders that are written beside their name and renamed: whatever happens, one of both is whole."""

from pathlib import Path

import pytest

from dna_probe.errors import ArtefactError
from dna_probe.storage import replacing_folder


def write(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_another_process_wrote_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(ArtefactError, match="is not empty"), replacing_folder(tmp_path / "out") as beside:
        write(beside, "ours")
        write(tmp_path / "out", "theirs")
    assert (tmp_path / "out/a.txt").read_text() == "theirs" and left(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_comes_back_where_the_last_step_fails(tmp_path, monkeypatch, error):
    write(tmp_path / "out", "before")
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    expected = ArtefactError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), replacing_folder(tmp_path / "out", overwrite=True) as beside:
        write(beside, "after")
    assert (tmp_path / "out/a.txt").read_text() == "before" and left(tmp_path) == ["out"]


def test_it_replaces(tmp_path):
    write(tmp_path / "out", "before")
    with replacing_folder(tmp_path / "out", overwrite=True) as beside:
        write(beside, "after")
    assert (tmp_path / "out/a.txt").read_text() == "after" and left(tmp_path) == ["out"]
