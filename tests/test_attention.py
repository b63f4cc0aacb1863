import math

import pytest
import torch

from dna_probe.attention import BINS, summarise_energy, summarise_sequence
from dna_probe.sites import Site


def site(kind="residual", prefix=0, class_token=False):
    return Site(f"blocks.0.{kind}", kind, 0, "block", "output", "tokens", 4, prefix, class_token)


@pytest.mark.parametrize("tokens", [2, 5, BINS, BINS + 1, 300])
def test_the_map_of_a_sequence_keeps_its_mass_and_its_place(tokens):
    activation = torch.zeros(1, tokens, 4)
    activation[:, 0] = 1
    found = summarise_sequence(activation, site())
    assert found["map"].shape == (1, BINS) and found["map"].sum().item() == pytest.approx(1)
    covered = math.ceil(BINS / tokens - 1e-9)
    assert found["map"][0, :covered].sum().item() == pytest.approx(1, abs=1e-5)
    assert found["entropy"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tokens", [2, 7, 200])
def test_even_sequences_of_any_length_are_alike(tokens):
    found = summarise_sequence(torch.ones(2, tokens, 4), site())
    torch.testing.assert_close(found["map"], torch.full((2, BINS), 1 / BINS))
    torch.testing.assert_close(found["entropy"], torch.full((2,), math.log(BINS)))
    # Two places drawn from an even line of n cells are (n^2 - 1) / (3 n) apart.
    torch.testing.assert_close(found["distance"], torch.full((2,), BINS * (tokens**2 - 1) / (3 * tokens**2)))


def test_as_many_tokens_as_parts_are_left_as_they_are():
    activation = torch.randn(3, BINS, 4)
    expected = summarise_energy(activation, (1, BINS))
    for name, values in summarise_sequence(activation, site()).items():
        torch.testing.assert_close(values, expected[name])


def test_a_pattern_is_read_without_its_prefix():
    pattern = torch.full((1, 2, 9, 9), 1 / 9)
    found = summarise_sequence(pattern, site("pattern", prefix=1, class_token=True))
    torch.testing.assert_close(found["map"], torch.full((1, BINS), 1 / BINS))
