"""What an audit found, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dna_probe.evaluation.audit import Audit, Comparison

# An AUC above it is flagged.
LIMIT = 0.6


def flags(result: Audit) -> list[str]:
    """A sentence for everything that makes results on these images doubtful."""
    found = []
    overall = result.overall
    if overall.metadata is None:
        found.append("Too few images to hold any out, so neither AUC could be measured.")
    elif overall.metadata.value > LIMIT:
        by = f" (by {listed(overall.told_by)})" if overall.told_by else ""
        found.append(f"Metadata alone tells real from fake: AUC {overall.metadata}{by}.{_note([overall])}")
    several = len(result.comparisons) > 2
    told = _above(result, "metadata")
    if several and told:
        names = _joined([f"{one.generator} {value:.3f} ({one.tells[0][0]})" for one, value in told])
        note = _note([one for one, _ in told])
        found.append(f"Metadata alone tells {_share(told, result)} from the reals: {names}.{note}")
    if overall.thumbnail and overall.thumbnail.value > LIMIT:
        found.append(f"16 x 16 pixels tell real from fake: AUC {overall.thumbnail}; colour and layout differ.")
    told = _above(result, "thumbnail")
    if several and told:
        names = _joined([f"{one.generator} {value:.3f}" for one, value in told])
        found.append(f"16 x 16 pixels tell {_share(told, result)} from the reals: {names}.")
    for reason, count in Counter(reason for reason, _ in result.leaks).items():
        found.append(f"Leak: {reason} ({count} {'case' if count == 1 else 'cases'}).")
    shared = sum(cluster.across_classes for cluster in result.near_duplicates)
    if shared:
        found.append(f"Near-duplicates with both labels: {shared} {'case' if shared == 1 else 'cases'}.")
    if result.unreadable:
        count = len(result.unreadable)
        found.append(f"Left out: {count} {'image' if count == 1 else 'images'} that could not be used.")
    return found


def _above(result: Audit, name: str) -> list[tuple[Comparison, float]]:
    """Generators that are told from the reals, with their AUC."""
    measured = ((one, getattr(one, name)) for one in result.comparisons[1:])
    return [(one, found.value) for one, found in measured if found is not None and found.value > LIMIT]


def _share(told: Sequence, result: Audit) -> str:
    return f"{len(told)} of {len(result.comparisons) - 1} generators"


def _note(told: Sequence[Comparison]) -> str:
    if not all(one.coded_alike for one in told):
        return ""
    return " The files are coded alike: their bytes per pixel say how much detail is in the pictures."


def verdict(result: Audit) -> str:
    """One plain sentence on what was found."""
    overall = result.overall
    if overall.metadata is None or overall.thumbnail is None:
        first = "There are too few images to say what tells real from fake"
    else:
        first = _told_apart(result, overall.metadata.value, overall.thumbnail.value)
    leaks = len(result.leaks)
    return f"{first}{f'; and there {_are(leaks)} to mend' if leaks else ''}."


def _told_apart(result: Audit, metadata: float, thumbnail: float) -> str:
    one_by_one = [one for one, _ in _above(result, "metadata")]
    if metadata > LIMIT and result.overall.coded_alike:
        return (
            f"The files are coded alike, but their bytes per pixel still tell real from fake (AUC {metadata:.3f}): "
            "the pictures differ in detail"
        )
    if metadata > LIMIT:
        return f"Real and fake can be told apart without a look at the pixels (AUC {metadata:.3f}): equalise them first"
    if one_by_one:
        what = "bytes per pixel do" if all(one.coded_alike for one in one_by_one) else "they do"
        return (
            f"The files do not tell real from fake overall (AUC {metadata:.3f}), but {what} for "
            f"{_joined([one.generator for one in one_by_one])}: look at each generator"
        )
    if thumbnail > LIMIT:
        return (
            f"The files do not tell real from fake (AUC {metadata:.3f}), but 16 x 16 pixels do ({thumbnail:.3f}): "
            "a detector must beat the thumbnail control"
        )
    return f"Neither the files (AUC {metadata:.3f}) nor 16 x 16 pixels ({thumbnail:.3f}) tell real from fake"


def _are(leaks: int) -> str:
    return "is 1 leak" if leaks == 1 else f"are {leaks} leaks"


def listed(tells: Sequence[tuple[str, float]]) -> str:
    """What tells the classes apart, each with its AUC."""
    return ", ".join(f"{name} {value:.3f}" for name, value in tells)


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
