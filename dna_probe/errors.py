"""Errors that a user can act on: what is wrong, why, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class DnaProbeError(Exception):
    """Base of every error that dna_probe raises on purpose.

    The message is one to three sentences: what is wrong, why, and what to do. The command line prints it as one line
    and exits with status 2; a traceback means a bug of ours.
    """

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = what, why, fix
        super().__init__(" ".join(_sentence(part) for part in (what, why, fix) if part))


class DataError(DnaProbeError):
    """The samples, labels or layout cannot be used as given."""


class UnreadableSample(DataError):
    """One image, text or recording cannot be used. `.name` says which, `.reason` why, in a few plain words."""

    def __init__(self, name: str, reason: str, fix: str = ""):
        self.name, self.reason = name, reason
        super().__init__(f"Cannot read {name}: {reason}", "", fix)

    def __reduce__(self):
        return type(self), (self.name, self.reason, self.fix)


class BackboneError(DnaProbeError):
    """The model cannot be built, loaded or probed."""


class SiteError(DnaProbeError):
    """A site or unit does not exist in this backbone, or did not fire."""


class NumericalError(DnaProbeError):
    """An activation, gradient or score is not finite."""


class ArtefactError(DnaProbeError):
    """A saved detector or result is damaged, newer than this version, or does not belong to these weights."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], error: type[DnaProbeError] = DnaProbeError, fix: str = ""
) -> DnaProbeError:
    """The error for a mistyped name: with near matches, or with the legal names where there is none."""
    known = list(known)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return error(f"Unknown {kind} {name!r}", f"Did you mean {' or '.join(repr(match) for match in near)}?", fix)
    shown = known if len(known) <= 12 else [*known[:12], f"and {len(known) - 12} more"]
    return error(f"Unknown {kind} {name!r}", f"Known: {', '.join(shown)}", fix)


def needs_extra(what: str, package: str, extra: str, error: type[DnaProbeError] = DnaProbeError) -> DnaProbeError:
    """The error where a package that only an extra brings is not installed."""
    return error(f"{what} needs {package}", "It is not installed", f"pip install 'dna-probe[{extra}]'")


def one_line(error: BaseException) -> str:
    """Class and message of an error that is not ours, in one line that fits into a sentence of ours."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:300] + ' ...'}"


def _sentence(part: str) -> str:
    return part if part.endswith(("?", "!")) else part.rstrip(".") + "."
