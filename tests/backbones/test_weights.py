"""Local weights: strict, without code in them, with errors that count."""

import pickle
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file

from dna_probe.backbones import open_backbone
from dna_probe.backbones.weights import load, read_state, shuffled
from dna_probe.errors import BackboneError

from .zoo import TokenModel


@pytest.fixture
def model():
    return TokenModel()


def wrapped(state, how):
    if how == "module.":
        return {f"module.{name}": value for name, value in state.items()}
    return {how: state, "epoch": 3} if how else state


@pytest.mark.parametrize("how", ["", "state_dict", "model", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_wrappers_and_prefixes(model, tmp_path, how, suffix):
    if suffix == ".safetensors" and how not in ("", "module."):
        pytest.skip("safetensors holds no nested state dict")
    path = tmp_path / f"weights{suffix}"
    content = wrapped(model.state_dict(), how)
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    other = TokenModel()
    load(other, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_names_that_start_with_module_on_both_sides_fit(tmp_path):
    inner = torch.nn.Sequential()
    inner.module = TokenModel()
    torch.save(inner.state_dict(), tmp_path / "a.pt")
    load(inner, tmp_path / "a.pt")
    load(TokenModel(), tmp_path / "a.pt")


def test_mismatch_counts_names_and_advises_and_changes_nothing(model, tmp_path):
    state = model.state_dict()
    state.pop("trunk.0.up.weight")
    state["trunk.9.up.weight"] = torch.zeros(2)
    state["head.weight"] = torch.zeros(7, 24)
    torch.save(state, tmp_path / "near.pth")
    before = deepcopy(model.state_dict())
    with pytest.raises(BackboneError) as caught:
        load(model, tmp_path / "near.pth")
    message = str(caught.value)
    assert message.startswith("near.pth does not fit TokenModel. Of 35 tensors: 1 missing (trunk.0.up.weight)")
    assert "1 unexpected (trunk.9.up.weight)" in message
    assert "1 of another shape (head.weight 7x24 instead of 5x24)" in message
    assert "It is close" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(BackboneError, match=r"another shape .*, \.\.\.\).*It was made for another architecture"):
        load(TokenModel(width=12), tmp_path / "near.pth")


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


def test_files_that_are_not_weights(model, tmp_path):
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Payload()}))
    torch.save({"a": Payload()}, tmp_path / "zipped.pth")
    torch.save(model, tmp_path / "whole.pt")
    for name in ("code.pth", "zipped.pth", "whole.pt"):
        with pytest.raises(BackboneError, match=r"Reading it could run code, so it was not read.*state_dict"):
            read_state(tmp_path / name)
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BackboneError, match=r"Not a whole safetensors file"):
        read_state(tmp_path / "broken.safetensors")
    whole = tmp_path / "cut.pth"
    torch.save(model.state_dict(), whole)
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(BackboneError, match=r"cut.pth cannot be read"):
        read_state(whole)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(BackboneError, match=r"holds no state dict. It holds epoch"):
        read_state(tmp_path / "empty.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(BackboneError, match=r"It holds tensor"):
        read_state(tmp_path / "tensor.pth")
    with pytest.raises(BackboneError, match=r"There is no file .*whle.pt. Beside it there is whole.pt"):
        read_state(tmp_path / "whle.pt")
    with pytest.raises(BackboneError, match=r"Its name ends in .bin. Give a state dict as .safetensors, .pth, .pt"):
        read_state(tmp_path / "model.bin")


def test_weights_for_a_timm_name_bring_their_own_number_of_classes(tmp_path):
    import timm

    donor = timm.create_model("test_vit", num_classes=3)
    save_file(donor.state_dict(), tmp_path / "three.safetensors")
    backbone = open_backbone("test_vit", weights=tmp_path / "three.safetensors")
    assert backbone.module.num_classes == 3
    assert torch.equal(backbone.module.blocks[0].attn.qkv.weight, donor.blocks[0].attn.qkv.weight)
    assert backbone.identity()["weights"] == str(tmp_path / "three.safetensors")
    headless = timm.create_model("test_vit", num_classes=0)
    save_file(headless.state_dict(), tmp_path / "none.safetensors")
    assert open_backbone("test_vit", weights=tmp_path / "none.safetensors").module.num_classes == 0
    with pytest.raises(BackboneError, match=r"does not fit VisionTransformer"):
        open_backbone("test_vit2", weights=tmp_path / "three.safetensors")


def test_half_precision_file_keeps_the_models_type(model, tmp_path):
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "half.pt")
    load(model, tmp_path / "half.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_shuffling_leaves_no_parameter_in_order(model):
    other = shuffled(model)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
        assert torch.equal(a, b) == (a.unique().numel() == 1), name
