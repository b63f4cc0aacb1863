"""The embedded backbone and the recipe that made it."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dna_probe.backbones import nano
from dna_probe.errors import BackboneError

WEIGHTS = Path(nano.__file__).with_name(nano.WEIGHTS)
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nano"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return nano.build()


@pytest.fixture(scope="module")
def recipe() -> Iterator[dict[str, ModuleType]]:
    """The recipe's modules, importable only while these tests run."""
    sys.path.insert(0, str(RECIPE))
    names = ("formulas", "train")
    yield {name: import_module(name) for name in names}
    sys.path.remove(str(RECIPE))
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def drawings(recipe: dict[str, ModuleType]) -> torch.Tensor:
    """Eight drawings of eight categories, ready for the network."""
    images = np.stack([recipe["formulas"].draw(category, 100) for category in range(8)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_file_is_small_half_precision_and_documented() -> None:
    assert WEIGHTS.stat().st_size <= 3_000_000
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["recipe"].startswith("recipes/nano ")
    assert 0 < int(metadata["step"]) <= int(metadata["steps"]) + int(metadata["final_steps"])
    assert int(metadata["seed"]) >= 0
    assert float(metadata["held_out_top1"]) > 0.1  # chance is 1 in `categories`, 0.003


def test_build_gives_an_evaluating_float32_network_without_head(model: torch.nn.Module) -> None:
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert isinstance(model.head, torch.nn.Identity)
    assert len(model.blocks) >= 8
    assert set(model.pretrained_cfg) >= {"input_size", "crop_pct", "interpolation", "mean", "std"}


def test_output_is_finite_deterministic_and_depends_on_the_image(
    model: torch.nn.Module, drawings: torch.Tensor
) -> None:
    with torch.no_grad():
        first, second = model(drawings), nano.build()(drawings)
    assert first.shape == (8, model.embed_dim)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
    similarity = torch.nn.functional.cosine_similarity(first[:, None], first[None], dim=-1)
    assert similarity[~torch.eye(8, dtype=torch.bool)].max() < 0.99


def test_attention_is_neither_uniform_nor_stuck_on_one_token(model: torch.nn.Module, drawings: torch.Tensor) -> None:
    maps: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], qkv: torch.Tensor) -> None:
        heads = model.blocks[0].attn.num_heads
        query, key, _ = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        maps.append((query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1))

    hooks = [block.attn.qkv.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(drawings)
    for hook in hooks:
        hook.remove()
    attention = torch.stack(maps)  # block, image, head, query, key
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(dim=-1).mean(dim=(1, 3)) / np.log(257)
    assert entropy.min() > 0.05
    # A head may look around evenly; the most selective head of a block may not. A random network: 0.98 to 1.
    choosiest = entropy.min(dim=1).values
    assert choosiest.max() < 0.985
    assert choosiest.mean() < 0.95
    received = attention.mean(dim=(1, 2, 3))  # block, key
    assert received.max() < 0.9


def test_missing_damaged_or_foreign_weights_say_what_to_do(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "files", lambda package: tmp_path)
    with pytest.raises(BackboneError, match="missing or damaged"):
        nano.build()
    (tmp_path / nano.WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(BackboneError, match="Reinstall"):
        nano.build()
    foreign = dict(model.state_dict())
    foreign.pop("cls_token")
    save_file(foreign, tmp_path / nano.WEIGHTS)
    with pytest.raises(BackboneError, match="do not fit"):
        nano.build()


def test_drawings_repeat_by_seed_and_categories_differ(recipe: dict[str, ModuleType]) -> None:
    draw = recipe["formulas"].draw
    for category in range(4):
        first = draw(category, 0, seed=3)
        assert first.shape == (128, 128, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, draw(category, 0, seed=3))
        for other in (draw(category, 1, seed=3), draw(category, 0, seed=4), draw(category + 4, 0, seed=3)):
            assert (first != other).mean() > 0.3
        assert first.std() > 3
    bank = recipe["formulas"].bank(4, 2, seed=3, size=64)
    assert np.array_equal(bank[2, 1], draw(2, 1, seed=3, size=64))


def test_categories_differ_in_shape_beyond_colour(recipe: dict[str, ModuleType]) -> None:
    """Two drawings of one plane fractal overlap more than drawings of two, once colour is gone."""
    formulas = recipe["formulas"]
    categories = [0, 4, 8, 12]

    def touched(category: int, instance: int) -> np.ndarray:
        rng = np.random.default_rng([0, category])
        parameters = formulas.fractal_category(rng)
        points, _ = formulas.fractal_instance(parameters, np.random.default_rng([0, category, instance + 1]))
        return np.histogram2d(*points.T, bins=24, range=[[-1, 1], [-1, 1]])[0].ravel() > 0

    masks = np.array([[touched(category, instance) for instance in range(3)] for category in categories], dtype=float)
    flat = masks.reshape(12, -1)
    alike = np.corrcoef(flat)
    same = np.kron(np.eye(4), np.ones((3, 3))).astype(bool)
    off = ~np.eye(12, dtype=bool)
    assert alike[same & off].mean() > alike[~same].mean() + 0.1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the recipe needs torch.optim.Muon, torch 2.9 or later")
def test_two_steps_of_training_write_loadable_weights_and_a_curve(
    recipe: dict[str, ModuleType], tmp_path: Path
) -> None:
    train = recipe["train"]
    plan = train.Plan(categories=4, instances=2, held_out=2, steps=1, final_steps=1, batch=4, warm_up=1, every=1)
    train.train(plan, tmp_path)
    fresh = nano.network()
    weights = load_file(tmp_path / "weights.safetensors")
    fresh.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    rows = (tmp_path / "curve.csv").read_text().splitlines()
    assert len(rows) == 3
    assert (tmp_path / "curve.pdf").stat().st_size > 1000
    assert not list(tmp_path.glob("*.partial"))
