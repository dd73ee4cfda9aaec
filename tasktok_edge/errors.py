"""The errors a caller may want to tell apart. Each message says what was expected, what came, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class TaskTokEdgeError(Exception):
    """Base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(TaskTokEdgeError, ValueError):
    """Wrong use or bad input: an unknown word, a file that is not there, an output folder that exists."""

    exit_code = 2


class FrameError(UsageError):
    """A frame that is not a finite (H, W, 3) uint8 picture."""


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged or of another architecture."""


class BundleError(UsageError):
    """A bundle that is missing, incomplete, changed since it was written, or of a newer schema."""


class VerdictError(TaskTokEdgeError):
    """A check ran and failed; what was built is kept and marked unverified."""

    exit_code = 3


class PackageError(TaskTokEdgeError, ImportError):
    """A package is missing or outside the tested set; the message names the extra to install."""

    exit_code = 4


class DeviceError(TaskTokEdgeError):
    """The requested device is not on this machine, or it refused or failed the bundle's golden frames."""

    exit_code = 5


def unknown_word(kind: str, word: str, known: Iterable[str]) -> UsageError:
    """Make the error for a word that is none of `known`.

    >>> print(unknown_word("task", "sgm", ["cls", "seg"]))
    unknown task 'sgm': did you mean 'seg'? There are: cls, seg
    """
    words = sorted(known)
    near = get_close_matches(word, words, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {word!r}: {hint}There are: {', '.join(words) or 'none'}")
