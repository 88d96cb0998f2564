"""What the registry says about a method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from soaprl.search.task import Evaluator, SearchResult, SearchTask
from soaprl.strategy.strategy import Strategy


class SearchFunction(Protocol):
    """Runs a method."""

    def __call__(self, task: SearchTask) -> SearchResult:
        """Find a strategy for `task`."""
        ...


class ChainsFunction(Protocol):
    """Runs a method with several chains."""

    def __call__(
        self, task: SearchTask, num_chains: int, more_evaluators: Sequence[Evaluator]
    ) -> SearchResult:
        """Find a strategy for `task` with `num_chains` chains, on one thread for each evaluator."""
        ...


class StartedFunction(Protocol):
    """Runs a method from a given strategy."""

    def __call__(self, task: SearchTask, start: Strategy) -> SearchResult:
        """Find a strategy for `task`, beginning with `start`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to choose a strategy.

    Attributes:
        name: As on the command line.
        description: One line for people.
        source: The paper or system it comes from.
        iterative: Whether it needs a budget (and depends on the seed); otherwise it makes one strategy.
        resumable: Whether it keeps a state file.
        function: Runs it.
        chains: Runs it with several chains side by side; None for methods without chains.
        started: Runs it from a given strategy; None for methods that begin with nothing.
        whole_batch: Whether it only knows strategies without micro-batches.
        chooses_sharding: Whether it chooses sharding and micro-batches itself, so that a given strategy's are
            only where it begins.
    """

    name: str
    description: str
    source: str
    iterative: bool
    resumable: bool
    function: SearchFunction
    chains: ChainsFunction | None = None
    started: StartedFunction | None = None
    whole_batch: bool = False
    chooses_sharding: bool = False
