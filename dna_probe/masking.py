"""Mask units cumulatively and measure what each reader loses: the computation behind ``verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_probe.collection import Features, Options
from dna_probe.control_units import ABSENT, DRAWN, RANKED, UnitPool, control_sequences
from dna_probe.errors import DataError
from dna_probe.evaluation.metrics import bootstrap_weights, weighted_auc
from dna_probe.images.sampling import shot_positions
from dna_probe.images.sets import FAKE, REAL
from dna_probe.interventions import Edit, Intervention, make_interventions, reread
from dna_probe.masking_sentences import LEAST_LOSS
from dna_probe.probing import folds, linear_probe, small_fits
from dna_probe.sites import Reading

if TYPE_CHECKING:
    from dna_probe.anchor import AnchorClassifier
    from dna_probe.backbones.contract import Backbone
    from dna_probe.detector import Detector

READOUT, NETWORK = "readout", "network"
DETECTOR, ALL_UNITS, LAST_LAYER = "detector", "all-units", "last-layer"
FDU = "fdu"
# Shares of the knee at which the network is edited, multiples of it beyond, for the readout, and by what the draws of
# random units that the network gets before the knee are fewer.
NETWORK_SHARES, BEYOND, FEWER = (0.25, 0.5, 1.0), (2, 4), 4
BOOTSTRAP = 500
# Controls that hold fewer units than this share of the selected ones are no controls.
ENOUGH = 0.9


class _AnchorReader:
    """The stored classifier on its own units; ``columns`` are their positions among all."""

    name = DETECTOR

    def __init__(self, anchor: AnchorClassifier, columns: np.ndarray):
        self.anchor, self.columns = anchor, columns

    def scores(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Decision values (n,) from all units' values (n, units) of images at these positions."""
        return self.anchor.decision_function(values[:, self.columns])

    def masked(self, values: np.ndarray, edited: np.ndarray, sequence: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Decision values with the first so many units of the sequence edited, (counts, n)."""
        plain, changed = values[:, self.columns], edited[:, self.columns]
        hit = [np.isin(self.columns, sequence[:count]) for count in counts]
        return np.stack([self.anchor.decision_function(np.where(units, changed, plain)) for units in hit])

    def decided(self, scores: np.ndarray) -> np.ndarray:
        return self.anchor.calibration_.probability(scores) >= self.anchor.threshold_


class _ProbeReader:
    """A linear probe fitted across folds: every image is read by the one that did not see its group.

    Attributes:
        weights: (folds + 1, units) of raw values, and ``offsets`` (folds + 1,); the last, of zeros, reads images that
            are in no fold. ``fold`` is that of each image.
        importance: mean size of the weights per standard deviation, (units,).
    """

    def __init__(self, name: str, values: np.ndarray, labels: np.ndarray, groups: Sequence[str], seed: int):
        self.name = name
        pairs = folds(labels, groups, seed=seed)
        self.weights, self.offsets = np.zeros((len(pairs) + 1, values.shape[1])), np.zeros(len(pairs) + 1)
        self.fold = np.full(len(values), len(pairs))
        self.importance = np.zeros(values.shape[1])
        for number, (train, test) in enumerate(pairs):
            probe = linear_probe(random_state=seed).fit(values[train], labels[train])
            scaler, classifier = probe[0], probe[-1]
            self.weights[number] = classifier.coef_[0] / scaler.scale_
            self.offsets[number] = classifier.intercept_[0] - scaler.mean_ @ self.weights[number]
            self.fold[test] = number
            self.importance += np.abs(classifier.coef_[0]) / len(pairs)

    def scores(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        fold = self.fold[rows]
        return np.einsum("nu,nu->n", values, self.weights[fold]) + self.offsets[fold]

    def masked(self, values: np.ndarray, edited: np.ndarray, sequence: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        # Linear, so that what masking changes adds up: no set has to be computed anew.
        units = _present(sequence[: max(counts)])
        change = np.cumsum((edited[:, units] - values[:, units]) * self.weights[:, units][self.fold], axis=1)
        change = np.concatenate([np.zeros((len(values), 1)), change], axis=1)
        plain = self.scores(values, np.arange(len(values)))
        return np.stack([plain + change[:, len(_present(sequence[:count]))] for count in counts])

    def decided(self, scores: np.ndarray) -> np.ndarray:
        return scores >= 0


_Reader = _AnchorReader | _ProbeReader


def _present(sequence: np.ndarray) -> np.ndarray:
    return sequence[sequence != ABSENT]


# AUC lost at the knee by each set, under (place, intervention, reader, kind).
Losses = dict[tuple[str, str, str, str], np.ndarray]
Rows = list[dict[str, Any]]


@dataclass(eq=False)
class Bench:
    """The images' readings, who reads them, and what is masked; ``fresh`` images were not trained on, (n,) bool."""

    features: Features
    fresh: np.ndarray
    readings: list[Reading]
    last: Reading
    values: np.ndarray
    pool: UnitPool
    sequences: dict[str, np.ndarray]
    interventions: list[Intervention]
    readers: list[_Reader]
    final: _ProbeReader
    draws: int
    seed: int
    notes: list[str]

    @classmethod
    def make(
        cls,
        detector: Detector,
        features: Features,
        fresh: np.ndarray,
        readings: list[Reading],
        last: Reading,
        interventions: Sequence[str],
        draws: int,
        seed: int,
    ) -> Bench:
        images, values = features.images, features.of(readings).astype(np.float64)
        if not folds(images.labels, images.groups, seed=seed):
            raise DataError(
                f"A class of {images.origin} is one group of images",
                "No probe can be judged on a group that it was not fitted on",
                "Give images of more groups",
            )
        with small_fits():
            probe = _ProbeReader(ALL_UNITS, values, images.labels, images.groups, seed)
            final = _ProbeReader(LAST_LAYER, features.values[last.name], images.labels, images.groups, seed)
        assert detector.unit_set is not None
        order, mask = detector.unit_set.scores.order, detector.unit_set.mask
        pool = UnitPool(
            ranked=np.concatenate([order[mask[order]], order[~mask[order]]]),
            selected=int(mask.sum()),
            reading=np.repeat(np.arange(len(readings)), [reading.width for reading in readings]),
            activation=np.column_stack([np.abs(values).mean(0), values.std(0)]),
            weight=probe.importance,
        )
        sequences = control_sequences(pool, min(max(BEYOND) * pool.selected, len(pool.ranked)), draws, seed)
        starts = np.cumsum([0, *(reading.width for reading in readings)])
        start = {reading.name: begin for reading, begin in zip(readings, starts[:-1], strict=True)}
        columns = [start[reading.name] + unit for reading, own in detector.units_by_reading.items() for unit in own]
        bench = cls(
            features=features,
            fresh=fresh,
            readings=readings,
            last=last,
            values=values,
            pool=pool,
            sequences={FDU: pool.ranked[None], **sequences},
            interventions=make_interventions(interventions, values, images.labels),
            readers=[_AnchorReader(detector.anchor, np.array(columns)), probe],
            final=final,
            draws=draws,
            seed=seed,
            notes=[],
        )
        bench.note_shortfalls()
        return bench

    @property
    def labels(self) -> np.ndarray:
        return self.features.images.labels

    def note_shortfalls(self) -> None:
        """Say which controls are fewer than the selected units."""
        for kind in (*DRAWN, *RANKED):
            least = min(len(_present(sequence[: self.pool.selected])) for sequence in self.sequences[kind])
            if least < self.pool.selected:
                left_out = "" if least >= ENOUGH * self.pool.selected else ", so that these are not compared"
                self.notes.append(f"{self.pool.selected} units are selected and {least} are {kind}{left_out}.")

    def mask_readout(self, points: int) -> tuple[Rows, Losses]:
        """Curves on the readings' values, from none to all selected units and, for the probe on all units, beyond."""
        knee, every = self.pool.selected, np.arange(len(self.values))
        within = sorted({round(share * knee) for share in np.linspace(0, 1, points + 1)[1:]} - {0})
        beyond = [times * knee for times in BEYOND]
        measured = _Measured(READOUT, self.labels, self.features.images.groups, knee, self.seed)
        for reader in self.readers:
            plain = reader.scores(self.values, every)
            for intervention in self.interventions:
                measured.unmasked(intervention.name, reader, plain)
                edited = intervention.edited(self.values, self.labels)
                for kind, sequences in self.sequences.items():
                    if reader.name == DETECTOR and kind != FDU:
                        continue
                    further = beyond if reader.name == ALL_UNITS and kind in (FDU, "random") else []
                    counts = [k for k in (*within, *further) if k <= sequences.shape[1] or k == knee]
                    scores = np.stack([reader.masked(self.values, edited, one, counts) for one in sequences])
                    for place, k in enumerate(counts):
                        masked = [len(_present(one[:k])) for one in sequences]
                        measured.add(intervention.name, reader, kind, k, float(np.mean(masked)), scores[:, place])
        return measured.rows, measured.losses

    def mask_network(
        self, backbone: Backbone, watched: Sequence[Reading], max_images: int, options: Options
    ) -> tuple[int, Rows, Losses]:
        """Curves with the units changed inside the forward pass, on some of the images; and how many these are."""
        images = self.features.images
        chosen = self._draw_images(max_images // 2)
        knee = self.pool.selected
        plan = self._network_plan()
        edits = [Edit(self.interventions[number], units) for number, _, _, units in plan]
        readers: list[_Reader] = [*self.readers, self.final]
        scores = {reader.name: np.zeros((len(edits), len(chosen))) for reader in readers}
        for part in reread(backbone, images.subset(chosen), self.readings, watched, edits, options):
            rows = np.full(len(part.edits), chosen[part.image])
            values = np.concatenate([part.values[reading.name] for reading in self.readings], axis=1)
            for reader in self.readers:
                scores[reader.name][part.edits, part.image] = reader.scores(values, rows)
            scores[LAST_LAYER][part.edits, part.image] = self.final.scores(part.values[self.last.name], rows)
        measured = _Measured(NETWORK, self.labels[chosen], np.asarray(images.groups)[chosen], knee, self.seed)
        plain = {reader.name: reader.scores(self.values[chosen], chosen) for reader in self.readers}
        plain[LAST_LAYER] = self.final.scores(self.features.values[self.last.name][chosen], chosen)
        for reader in readers:
            for number, intervention in enumerate(self.interventions):
                measured.unmasked(intervention.name, reader, plain[reader.name])
                mine = [(i, kind, k, len(units)) for i, (n, kind, k, units) in enumerate(plan) if n == number]
                for kind, k in dict.fromkeys((kind, k) for _, kind, k, _ in mine):
                    own = [(i, masked) for i, one, count, masked in mine if (one, count) == (kind, k)]
                    index, masked = (list(part) for part in zip(*own, strict=True))
                    measured.add(intervention.name, reader, kind, k, float(np.mean(masked)), scores[reader.name][index])
                if reader.name != LAST_LAYER:
                    self._compare_places(measured, reader, intervention, chosen)
        return len(chosen), measured.rows, measured.losses

    def _draw_images(self, most: int) -> np.ndarray:
        """Positions of so many images of each class; of those that were trained on only where others are too few."""
        images = self.features.images
        for members in (self.fresh, np.ones(len(images), bool)):
            own = np.flatnonzero(members)
            fewest = min(int((images.labels[own] == label).sum()) for label in (REAL, FAKE))
            if fewest >= most:
                return own[shot_positions(images.subset(own), most, self.seed)]
        return shot_positions(images, fewest, self.seed)

    def _network_plan(self) -> list[tuple[int, str, int, np.ndarray]]:
        """Number of the intervention, kind, count and units of every edit: all kinds at the knee, before it the
        selected units and some draws of random ones."""
        knee = self.pool.selected
        counts = sorted({max(1, round(share * knee)) for share in NETWORK_SHARES})
        plan = []
        for number in range(len(self.interventions)):
            for kind, sequences in self.sequences.items():
                for k in counts:
                    if k < knee and kind not in (FDU, "random"):
                        continue
                    sets = sequences[: max(1, self.draws // FEWER)] if k < knee else sequences
                    plan += [(number, kind, k, _present(one[:k])) for one in sets]
        return plan

    def _compare_places(
        self, measured: _Measured, reader: _Reader, intervention: Intervention, chosen: np.ndarray
    ) -> None:
        """Beside the selected units' loss inside the network, that at the readout on the same images."""
        edited = intervention.edited(self.values, self.labels)
        for row in measured.rows:
            if row["reader"] == reader.name and row["intervention"] == intervention.name and row["kind"] == FDU:
                (scores,) = reader.masked(self.values, edited, self.sequences[FDU][0], [row["k"]])
                plain = reader.scores(self.values[chosen], chosen)
                lost = float(_auc(self.labels[chosen], plain) - _auc(self.labels[chosen], scores[chosen]))
                row["self_repair"] = 1 - row["loss"] / lost if lost >= LEAST_LOSS else None


class _Measured:
    """Rows of a place, and what is lost at the knee."""

    def __init__(self, place: str, labels: np.ndarray, groups: Sequence[str] | np.ndarray, knee: int, seed: int):
        self.place, self.labels, self.knee = place, labels, knee
        self.weights = bootstrap_weights(labels, groups, BOOTSTRAP, seed)
        self.rows: Rows = []
        self.losses: Losses = {}
        self.plain = 0.0

    def unmasked(self, intervention: str, reader: _Reader, scores: np.ndarray) -> None:
        """Where the curves of a reader under an intervention begin."""
        self.plain = float(_auc(self.labels, scores))
        self.add(intervention, reader, FDU, 0, 0.0, scores[None])

    def add(self, intervention: str, reader: _Reader, kind: str, k: int, masked: float, scores: np.ndarray) -> None:
        """A row from the decision values of each set of units, (sets, n)."""
        auc, right = _auc(self.labels, scores), reader.decided(scores) == (self.labels == FAKE)
        spread = auc if kind in DRAWN else weighted_auc(self.labels, scores, self.weights)
        low, high = np.nanpercentile(spread, [2.5, 97.5])
        if k == self.knee:
            self.losses[self.place, intervention, reader.name, kind] = self.plain - auc
        self.rows.append(
            {
                "place": self.place,
                "intervention": intervention,
                "reader": reader.name,
                "kind": kind,
                "k": int(k),
                "masked": masked,
                "auc": float(auc.mean()),
                "auc_low": float(low),
                "auc_high": float(high),
                "accuracy_real": float(right[:, self.labels == REAL].mean()),
                "accuracy_fake": float(right[:, self.labels == FAKE].mean()),
                "loss": float(self.plain - auc.mean()),
                "draws": len(scores),
            }
        )


def _auc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each row of scores (..., n), by ranks (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    fake = labels == FAKE
    many = int(fake.sum())
    ranks = np.asarray(rankdata(scores, axis=-1))[..., fake].sum(-1)
    return (ranks - many * (many + 1) / 2) / (many * (len(labels) - many))


def summarise(rows: Rows, losses: Losses, knee: int) -> list[dict[str, Any]]:
    """One row per place, intervention and reader: the selected units at the knee, beside their controls."""
    found = []
    for place, intervention, reader in dict.fromkeys((r["place"], r["intervention"], r["reader"]) for r in rows):
        mine = [r for r in rows if (r["place"], r["intervention"], r["reader"]) == (place, intervention, reader)]
        curve = [r for r in mine if r["kind"] == FDU and r["k"] <= knee]
        first, last = curve[0], curve[-1]
        ours = losses[place, intervention, reader, FDU]
        controls = {
            r["kind"]: _against(float(ours[0]), losses[place, intervention, reader, r["kind"]], r["kind"] in DRAWN)
            for r in mine
            if r["kind"] != FDU and r["k"] == knee and r["masked"] >= ENOUGH * knee
        }
        found.append(
            {
                "place": place,
                "intervention": intervention,
                "reader": reader,
                "unmasked": first["auc"],
                "unmasked_low": first["auc_low"],
                "masked": last["auc"],
                "loss": last["loss"],
                "accuracy_real": [first["accuracy_real"], last["accuracy_real"]],
                "accuracy_fake": [first["accuracy_fake"], last["accuracy_fake"]],
                "spearman": _rank_correlation([(r["k"], r["auc"]) for r in curve]),
                "points": len(curve),
                "controls": controls,
                "self_repair": last.get("self_repair"),
            }
        )
    return found


def _against(ours: float, theirs: np.ndarray, drawn: bool) -> dict[str, Any]:
    """The loss of one kind of controls beside ours."""
    mean = float(theirs.mean())
    as_much = int((theirs >= ours).sum())
    return {
        "loss": mean,
        "ratio": ours / mean if mean > 0 else None,
        "p": (1 + as_much) / (1 + len(theirs)) if drawn else None,
        "draws": len(theirs),
    }


def _rank_correlation(curve: Sequence[tuple[int, float]]) -> float | None:
    """Spearman's, of AUC against the number masked; None where either does not change."""
    from scipy.stats import spearmanr

    counts, auc = np.array(curve).T
    if len(np.unique(counts)) < 2 or len(np.unique(auc)) < 2:
        return None
    return float(spearmanr(counts, auc).statistic)
