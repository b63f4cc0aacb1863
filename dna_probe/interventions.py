"""Change units and read what becomes of the rest: at the readout, or inside the forward pass with all that follows
computed again.

``zero``
    The unit reads 0.
``mean``
    The unit reads its mean over the data.
``swap``
    Class-mean swap: a fake image's unit moves by (mean of real - mean of fake), a real image's by the opposite. The
    difference between the classes is exchanged, and each image's own variation stays.

All three are affine in the reading: it becomes ``keep * value + offset``. At the readout that is arithmetic on stored
values. Inside the network the tokens that the reading covers (the CLS token, or all patches) are changed such that the
reading becomes exactly that: each token by the same map, which carries over to reductions that move with a shift of
their tokens; a standard deviation over the patches is stretched about the patches' mean instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dna_probe.batches import load_batches
from dna_probe.collection import Options
from dna_probe.errors import unknown_name
from dna_probe.images.sets import FAKE, ImageSet
from dna_probe.moments import require_finite
from dna_probe.shards import progress_bar
from dna_probe.sites import Reading, Site, patch_tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dna_probe.backbones.contract import Backbone

# Edits that the shortened forward is tried out on, and how far it may lie from the whole one.
TRIAL = 2
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Intervention:
    """What each unit's reading becomes: ``keep * value + level + shift`` for fakes, ``... - shift`` for reals.

    ``level`` and ``shift`` are (units,).
    """

    name: str
    keep: float
    level: np.ndarray
    shift: np.ndarray

    def offsets(self, labels: np.ndarray) -> np.ndarray:
        """What is added to each unit of images with these labels, (n, units)."""
        return self.level + np.where(labels == FAKE, 1.0, -1.0)[:, None] * self.shift

    def edited(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The readings (n, units) after the intervention."""
        return self.keep * values + self.offsets(labels)


def _zero(values: np.ndarray, labels: np.ndarray) -> Intervention:
    nothing = np.zeros(values.shape[1])
    return Intervention("zero", 0.0, nothing, nothing)


def _mean(values: np.ndarray, labels: np.ndarray) -> Intervention:
    return Intervention("mean", 0.0, values.mean(0, dtype=np.float64), np.zeros(values.shape[1]))


def _swap(values: np.ndarray, labels: np.ndarray) -> Intervention:
    fake = labels == FAKE
    shift = values[~fake].mean(0, dtype=np.float64) - values[fake].mean(0, dtype=np.float64)
    return Intervention("swap", 1.0, np.zeros(values.shape[1]), shift)


INTERVENTIONS: dict[str, Callable[[np.ndarray, np.ndarray], Intervention]] = {
    "mean": _mean,
    "zero": _zero,
    "swap": _swap,
}


def make_interventions(names: Sequence[str], values: np.ndarray, labels: np.ndarray) -> list[Intervention]:
    """The interventions of these names, their means taken from labelled readings (n, units)."""
    return [INTERVENTIONS[name](values, labels) for name in names]


def require_interventions(names: Sequence[str]) -> None:
    """Raise ``DnaProbeError`` for a mistyped name."""
    for name in names:
        if name not in INTERVENTIONS:
            raise unknown_name("intervention", name, INTERVENTIONS)


@dataclass(frozen=True, eq=False)
class Edit:
    """Some units under an intervention; ``units`` are positions in the readings side by side."""

    intervention: Intervention
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Reread:
    """What the readings of an image became under some edits.

    Attributes:
        image: position of the image, ``edits`` of the edits.
        values: reading name -> (edits, width).
    """

    image: int
    edits: np.ndarray
    values: Mapping[str, np.ndarray]


def reread(
    backbone: Backbone,
    images: ImageSet,
    readings: Sequence[Reading],
    watched: Sequence[Reading],
    edits: Sequence[Edit],
    options: Options | None = None,
) -> Iterator[Reread]:
    """Readings of every image under every edit made inside the forward pass: one image, ``batch_size`` edits at once.

    What lies before the first edited layer is computed once: there the image is repeated, one copy for each edit. A
    model that holds on to the batch in other places cannot be run so; that is tried out on the first image, and such a
    model gets its images repeated from the start.

    Where readings of one site share a unit's tokens (its patches), an edit changes them as the first of them says.

    Args:
        images: labelled and readable.
        readings: those that the edits number their units by, side by side.
        watched: those to read.

    Raises:
        NumericalError: a reading is not finite under an edit.
    """
    import torch

    options = options or Options()
    order = {name: place for place, name in enumerate(backbone.sites)}
    plans = [_plan(edit, readings, images.labels) for edit in edits]
    # Edits that begin at the same depth share the most of the forward pass.
    queue = sorted(range(len(edits)), key=lambda number: _first(plans[number], order))
    parts = [queue[start : start + options.batch_size] for start in range(0, len(queue), options.batch_size)]
    forks = [_fork_site(backbone, min(_first(plans[number], order) for number in part), order) for part in parts]
    trials = {fork: [plans[n] for n in part[:TRIAL]] for part, fork in zip(parts, forks, strict=True) if fork}
    tried = False
    with (
        torch.inference_mode(),
        _forked(backbone, {r.site.name for r in readings}, watched) as run,
        progress_bar(len(edits) * len(images), options.progress, "edits") as advance,
    ):
        for batch in load_batches(images.images, backbone.preprocessing, 1, options.workers):
            for image in batch.index:
                pixels = torch.from_numpy(batch.inputs).to(backbone.device)
                if not tried:
                    if not all(_agrees(run, pixels, image, chosen, fork) for fork, chosen in trials.items()):
                        forks = [None] * len(parts)
                    tried = True
                for part, fork in zip(parts, forks, strict=True):
                    values = run(pixels, image, [plans[number] for number in part], fork)
                    for name, value in values.items():
                        require_finite(value, "edited activation", name)
                    yield Reread(image, np.array(part), values)
                    advance(len(part))


@dataclass(frozen=True, eq=False)
class _Change:
    """Channels of one reading, and what they become: ``keep * value + offsets``, offsets (images, channels)."""

    reading: Reading
    channels: np.ndarray
    keep: float
    offsets: np.ndarray


# Site name -> what is changed there.
_Plan = dict[str, list[_Change]]


def _plan(edit: Edit, readings: Sequence[Reading], labels: np.ndarray) -> _Plan:
    offsets, wanted = edit.intervention.offsets(labels), np.sort(edit.units)
    plan: _Plan = {}
    taken: dict[tuple[str, bool], set[int]] = {}
    start = 0
    for reading in readings:
        own = wanted[(wanted >= start) & (wanted < start + reading.width)]
        used = taken.setdefault((reading.site.name, reading.reduction == "cls"), set())
        own = np.array([unit for unit in own.tolist() if unit - start not in used], dtype=np.int64)
        if len(own):
            used |= set((own - start).tolist())
            change = _Change(reading, own - start, edit.intervention.keep, offsets[:, own])
            plan.setdefault(reading.site.name, []).append(change)
        start += reading.width
    return plan


def _first(plan: _Plan, order: Mapping[str, int]) -> int:
    """Place of the first site that is changed, among all sites as they fire."""
    return min((order[name] for name in plan), default=len(order))


def _fork_site(backbone: Backbone, first: int, order: Mapping[str, int]) -> str | None:
    """The last layer output at or before the first change: between layers nothing else carries the batch."""
    names = [site.name for site in backbone.layers if order[site.name] <= first]
    return names[-1] if names else None


_Run = Callable[["Tensor", int, Sequence[_Plan], str | None], dict[str, np.ndarray]]


@contextmanager
def _forked(backbone: Backbone, edited: set[str], watched: Sequence[Reading]) -> Iterator[_Run]:
    """A context whose function runs an image under several plans at once and reads it, (plans, width) each.

    From the site named ``fork`` on (from the pixels, where it is None) every plan has its own copy of the image.
    """
    plans: Sequence[_Plan] = ()
    image, fork, forked = 0, None, False
    found: dict[str, np.ndarray] = {}

    def visitor(site: Site) -> Callable[[Tensor], Tensor | None]:
        own = [reading for reading in watched if reading.site.name == site.name]

        def visit(activation: Tensor) -> Tensor | None:
            nonlocal forked
            changed = None
            if site.name == fork:
                forked = True
                changed = activation = _repeated(activation, len(plans))
            if forked and any(site.name in plan for plan in plans):
                changed = activation = _copy(activation) if changed is None else activation
                for number, plan in enumerate(plans):
                    for change in plan.get(site.name, ()):
                        _apply(change, activation[number : number + 1], image)
            for reading in own:
                value = reading.reduce(activation).float().cpu().numpy()
                found[reading.name] = np.broadcast_to(value, (len(plans), reading.width))
            return changed

        return visit

    names = edited | {r.site.name for r in watched} | {site.name for site in backbone.layers}
    with backbone.visiting(
        {name: visitor(backbone.sites[name]) for name in backbone.sites if name in names}
    ) as forward:

        def run(pixels: Tensor, position: int, chosen: Sequence[_Plan], where: str | None) -> dict[str, np.ndarray]:
            nonlocal plans, image, fork, forked
            plans, image, fork, forked = chosen, position, where, where is None
            found.clear()
            forward(pixels if where is not None else _repeated(pixels, len(chosen)))
            return dict(found)

        yield run


def _repeated(batch: Tensor, times: int) -> Tensor:
    return batch.repeat(times, *[1] * (batch.ndim - 1))


def _copy(activation: Tensor) -> Tensor:
    import torch

    return activation.clone(memory_format=torch.contiguous_format)


def _apply(change: _Change, activation: Tensor, image: int) -> None:
    """Write the change into a contiguous activation of one image."""
    import torch

    reading = change.reading
    if reading.reduction == "cls" and reading.site.layout != "vector":
        tokens = activation[:, :1]
    else:
        tokens = patch_tokens(reading.site, activation)
    channels = torch.as_tensor(change.channels, device=activation.device)
    offsets = torch.as_tensor(change.offsets[image], dtype=activation.dtype, device=activation.device)
    part = tokens[:, :, channels]
    if reading.reduction == "std":
        spread = reading.reduce(activation)[:, channels]
        wanted = (change.keep * spread + offsets).clamp(min=0)
        factor = torch.where(spread > 0, wanted / spread, torch.zeros_like(spread))
        centre = part.mean(1, keepdim=True)
        tokens[:, :, channels] = centre + (part - centre) * factor[:, None]
    else:
        tokens[:, :, channels] = change.keep * part + offsets


def _agrees(run: _Run, pixels: torch.Tensor, image: int, plans: Sequence[_Plan], fork: str) -> bool:
    """Whether the forward that forks at a site reads what the whole forward reads."""
    truth = run(pixels, image, plans, None)
    try:
        found = run(pixels, image, plans, fork)
    except Exception:
        # A model that holds the batch elsewhere may object in any way.
        return False
    return all(
        np.abs(found[name] - value).max() <= TOLERANCE * max(float(np.abs(value).max()), 1e-12)
        for name, value in truth.items()
    )
