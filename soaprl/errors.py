"""The exceptions that soaprl raises.

One small tree: catch `SoaprlError` for everything a user can mend. A message says what was expected,
what was found, in which object, and what to do. Broken invariants of our own are plain `AssertionError`s.
"""

import difflib
from collections.abc import Iterable
from typing import Protocol, TypeVar


class SoaprlError(Exception):
    """Base of every error that a user can mend; the command line prints it and exits with 2."""


class GraphError(SoaprlError, ValueError):
    """An operator graph, or the file that holds it, is malformed."""


class CaptureError(SoaprlError, RuntimeError):
    """A PyTorch model could not be turned into an operator graph."""


class ClusterError(SoaprlError, ValueError):
    """A cluster name, cluster file or topology is wrong."""


class StrategyError(SoaprlError, ValueError):
    """A strategy does not fit its graph or cluster, or its file is malformed."""


class CostError(SoaprlError, ValueError):
    """A cost model cannot answer for an operator, shard or device."""


class SimulationError(SoaprlError, ValueError):
    """A problem cannot be simulated."""


class ProgramError(SoaprlError, ValueError):
    """A program for the ranks is wrong, does not fit its graph, or its file is malformed."""


class ExecutionError(SoaprlError, RuntimeError):
    """A strategy cannot be run as asked: its model, batch, optimizer or options do not fit."""


class SearchError(SoaprlError, ValueError):
    """A search was asked for something it cannot do."""


class PolicyError(SoaprlError, ValueError):
    """A trained policy cannot be loaded, does not fit the features of this version, or cannot be trained."""


class OutputError(SoaprlError, OSError):
    """A file cannot be written."""


class UnknownNameError(SoaprlError, LookupError):
    """A name is not among the known ones."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for `name`, with the closest known names and where to list them all."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    return UnknownNameError(f"unknown {what} {name!r}.{hint} Known: {', '.join(choices) or '(none)'}.")


class Named(Protocol):
    """Something that users call by a name."""

    @property
    def name(self) -> str:
        """The name."""
        ...


N = TypeVar("N", bound=Named)


def find_named(what: str, name: str, known: Iterable[N]) -> N:
    """The one of `known` that is called `name`.

    Raises:
        UnknownNameError: None of them is.
    """
    by_name = {each.name: each for each in known}
    if name not in by_name:
        raise unknown_name(what, name, by_name)
    return by_name[name]
