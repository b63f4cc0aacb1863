"""Examples run as they are, and what the pages quote of them is what they say."""

import re
import runpy
from pathlib import Path

import pytest

from dna_probe.backbones import families

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["your_own_model", "text_and_audio"])
def test_examples_run(name, capsys, monkeypatch):
    monkeypatch.setattr(families, "_REGISTERED", [])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    told = capsys.readouterr().out
    assert " units " in told and not re.search(r"^  no ", told, re.MULTILINE)


def test_the_adapter_on_the_page_is_that_of_the_example():
    page = (ROOT / "docs" / "backbones.md").read_text()
    block = re.search(r"<!-- adapter -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    bare = re.sub(r"\s+|#.*", "", block)
    example = re.sub(r"\s+", "", (ROOT / "examples" / "your_own_model.py").read_text())
    assert bare.partition("register_family(")[2] in example
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
