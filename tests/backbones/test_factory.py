"""Factories in Python files."""

import sys

import pytest

from dna_probe.backbones import open_backbone
from dna_probe.errors import BackboneError

SOURCE = """
import dna_probe
from torch import nn

SIZE = 32

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU(inplace=True))
        self.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    def forward(self, x):
        return self.features(x).mean((2, 3))

def build():
    return Net()

def fails():
    raise FileNotFoundError("weights.pth is gone")

def several():
    raise ValueError("one line\\n  and another")

def wrong():
    return {"model": 1}

def needs(path):
    return Net()

def opened():
    net = Net()
    del net.pretrained_cfg
    return dna_probe.open_backbone(net)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "timm.py"  # a name that must not shadow the library
    path.write_text(SOURCE)
    return path


def test_factory_is_opened_with_its_preprocessing(file):
    import timm

    before = set(sys.modules)
    backbone = open_backbone(f"{file}:build")
    assert backbone.depth == 2
    assert [site.module for site in backbone.layers] == ["features.1", "features.3"]
    assert backbone.preprocessing.input_size == (32, 32)
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.spec == f"{file}:build"
    assert backbone.name == "timm.py:build"
    assert backbone.family == "Net"
    assert timm.__file__ != str(file)
    added = set(sys.modules) - before
    assert all(
        name.startswith("_dna_probe_factory_")
        for name in added
        if getattr(sys.modules[name], "__file__", "") == str(file)
    )


def test_relative_paths_are_kept_absolute(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert open_backbone("timm.py:build").spec == f"{file}:build"


def test_random_weights_and_local_weights(file, tmp_path):
    import torch

    backbone = open_backbone(f"{file}:build")
    torch.save(backbone.module.state_dict(), tmp_path / "net.pth")
    assert open_backbone(f"{file}:build", weights=tmp_path / "net.pth").weight_hash == backbone.weight_hash
    control = open_backbone(f"{file}:build", random_weights=True)
    assert "untrained control" in control.notes[0]


def test_a_backbone_from_a_factory_keeps_its_notes(file):
    note = "the model states no preprocessing: 224 x 224, crop 0.875, bicubic, ImageNet mean and deviation assumed"
    assert open_backbone(f"{file}:opened").notes == (note,)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (":biuld", r"Unknown factory 'biuld'. Did you mean 'build'.*File .*timm.py"),
        (":nn", r"Unknown factory 'nn'. Known: Net, build, fails, several, wrong, needs, opened"),
        ("", r"names no function. Write it as .*timm.py:factory"),
        (":fails", r"timm.py:fails\(\) failed. FileNotFoundError: weights.pth is gone. Call it in Python"),
        (":several", r"timm.py:several\(\) failed. ValueError: one line and another. Call it in Python"),
        (":wrong", r"timm.py:wrong\(\) returned dict. A factory has to return a torch.nn.Module, or a Backbone"),
        (":needs", r"timm.py:needs\(\) failed. TypeError: .*missing 1 required positional argument"),
    ],
)
def test_wrong_factories_say_so(file, function, message):
    with pytest.raises(BackboneError, match=message):
        open_backbone(f"{file}{function}")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(
        BackboneError, match=r"There is no file .*none.py. Give an existing file as path/to/file.py:factory"
    ):
        open_backbone(f"{tmp_path / 'none.py'}:build")
    (tmp_path / "broken.py").write_text("import no_such_library_at_all\n")
    with pytest.raises(BackboneError, match=r"broken.py cannot be imported. ModuleNotFoundError: No module named"):
        open_backbone(f"{tmp_path / 'broken.py'}:build")
    (tmp_path / "syntax.py").write_text("def build(:\n")
    with pytest.raises(BackboneError, match=r"syntax.py cannot be imported. SyntaxError"):
        open_backbone(f"{tmp_path / 'syntax.py'}:build")
    assert not [
        name for name in sys.modules if name.startswith("_dna_probe_factory") and "broken" in str(sys.modules[name])
    ]
