import numpy as np

from dna_probe.batches import load_batches
from dna_probe.errors import UnreadableSample


class Lengths:
    """Samples are numbers, read as that many ones; 0 cannot be read."""

    modality = "text"

    def load(self, source, name):
        if source == 0:
            raise UnreadableSample(name, "empty")
        return np.ones(source, np.int64)


def test_samples_of_unequal_length_are_grouped_and_never_padded():
    batches = list(load_batches([3, 5, 3, 0, 5, 2, 3], Lengths(), batch_size=4))
    assert [(b.index, b.inputs.shape) for b in batches] == [
        ([0, 2], (2, 3)),
        ([1, 4], (2, 5)),
        ([5], (1, 2)),
        ([6], (1, 3)),
    ]
    assert all((batch.inputs == 1).all() for batch in batches)


def test_a_failure_is_told_once():
    told = [failure for batch in load_batches([3, 0, 5], Lengths(), batch_size=4) for failure in batch.failures]
    assert [(position, reason) for position, _, reason in told] == [(1, "empty")]
    (only,) = load_batches([0, 0], Lengths(), batch_size=4)
    assert only.index == [] and len(only.failures) == 2
