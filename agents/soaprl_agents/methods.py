"""The methods that search with a trained policy, for the registry that the command line shows.

Nothing here imports torch: a method loads its policy when it runs.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from soaprl.search.method import Method
from soaprl.search.task import SearchResult, SearchTask
from soaprl.strategy.strategy import Strategy

if TYPE_CHECKING:
    from soaprl_agents.network import Decider


def learned_methods(policy: Path | None = None) -> dict[str, Method]:
    """The methods by name.

    Args:
        policy: Folder of a checkpoint or an ensemble; None: the one that comes with soaprl.
    """
    known = (
        Method(
            name="policy",
            description="samples of a trained policy, data parallelism and experts; the best one kept",
            source="autoregressive graph policy; as Mirhoseini et al.: Device Placement (2017) for placement",
            iterative=True,
            resumable=True,
            function=partial(_policy, policy),
            whole_batch=True,
        ),
        Method(
            name="guided",
            description="Metropolis search from the policy's best sample, with proposals of the policy",
            source="Hastings: Monte Carlo Sampling Methods (1970), proposals from a trained policy",
            iterative=True,
            resumable=True,
            function=partial(_guided, policy),
            whole_batch=True,
            started=partial(_guided, policy),
        ),
        Method(
            name="finetune",
            description="goes on training the policy on the model at hand, on the best of its own samples",
            source="Rubinstein: The Cross-Entropy Method (1999), with the policy as its distribution",
            iterative=True,
            resumable=False,
            function=partial(_finetune, policy),
            whole_batch=True,
        ),
    )
    return {method.name: method for method in known}


def _policy(folder: Path | None, task: SearchTask) -> SearchResult:
    from soaprl_agents.searching import samples

    return samples.search_samples(task, _network(folder))


def _guided(folder: Path | None, task: SearchTask, start: Strategy | None = None) -> SearchResult:
    from soaprl_agents.searching import guided

    return guided.search_guided(task, _network(folder), start=start)


def _finetune(folder: Path | None, task: SearchTask) -> SearchResult:
    from soaprl_agents.searching import finetune

    return finetune.search_finetune(task, _network(folder))


def _network(folder: Path | None) -> "Decider":
    """The network, or the networks, of the policy in `folder`, or of the one that comes with soaprl."""
    from soaprl_agents.ensembles import load_policy, shipped_policy

    return load_policy(shipped_policy() if folder is None else folder).network
