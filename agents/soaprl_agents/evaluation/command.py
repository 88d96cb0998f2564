"""From the words of a command line to the plan of an evaluation."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from soaprl_envs.problems import NamedProblems, ProblemSpec, load_suite

from soaprl.errors import PolicyError
from soaprl.search.method import Method
from soaprl_agents.checkpoints import WEIGHTS, load_checkpoint, shipped_checkpoint
from soaprl_agents.evaluation.runs import EvaluationPlan


def evaluation_plan(
    *,
    policy: Path | None,
    suite: str,
    only: tuple[str, ...],
    methods: Mapping[str, Method],
    budgets: str,
    num_seeds: int,
    folder: Path,
) -> EvaluationPlan:
    """The plan of an evaluation.

    Args:
        policy: Folder of a checkpoint; None: the one that comes with soaprl.
        suite: Name or file of a suite.
        only: What names of problems begin with; empty: all problems.
        methods: The methods by name.
        budgets: Comma-separated numbers of evaluations.
        num_seeds: Seeds, from 0 on.
        folder: Where runs are kept.

    Raises:
        PolicyError: The policy cannot be loaded, budgets are no numbers, or no problem is left.
        SoaprlError: There is no such suite.
    """
    checkpoint = policy or shipped_checkpoint()
    load_checkpoint(checkpoint)
    words = budgets.split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise PolicyError(f"expected budgets such as 1,16,64, found {budgets!r}.")
    known = load_suite(suite).problems
    specs: list[ProblemSpec] = [known.spec(number) for number in range(len(known.names))]
    chosen = [spec for spec in specs if spec.name.startswith(only or ("",))]
    if not chosen:
        raise PolicyError(f"expected problems whose names begin with {', '.join(only)}; {suite!r} has none.")
    return EvaluationPlan(
        problems=NamedProblems(chosen),
        methods=methods,
        budgets=tuple(sorted({int(word) for word in words})),
        seeds=tuple(range(num_seeds)),
        folder=folder,
        policy=hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()[:12],
    )
