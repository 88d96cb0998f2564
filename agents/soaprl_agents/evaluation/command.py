"""From the words of a command line to the plan of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from soaprl_envs.problems import NamedProblems, ProblemSpec, load_suite

from soaprl.errors import PolicyError
from soaprl.search.method import Method
from soaprl_agents.ensembles import load_policy, shipped_policy
from soaprl_agents.evaluation.runs import Entry, EvaluationPlan, PolicyLabel
from soaprl_agents.methods import learned_methods


class _Known(NamedTuple):
    """A policy that takes part."""

    label: PolicyLabel
    methods: dict[str, Method]


def evaluation_plan(
    *,
    policies: Sequence[Path],
    suite: str,
    only: tuple[str, ...],
    methods: Sequence[Method],
    budgets: str,
    num_seeds: int,
    folder: Path,
) -> EvaluationPlan:
    """The plan of an evaluation.

    Args:
        policies: Folders of checkpoints or ensembles; none: the one that comes with soaprl.
        suite: Name or file of a suite.
        only: What names of problems begin with; empty: all problems.
        methods: The methods; those that use a policy run with each.
        budgets: Comma-separated numbers of evaluations.
        num_seeds: Seeds, from 0 on.
        folder: Where runs are kept.

    Raises:
        PolicyError: A policy cannot be loaded, budgets are no numbers, or no problem is left.
        SoaprlError: There is no such suite.
    """
    known = _known(policies or (shipped_policy(),))
    words = budgets.split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise PolicyError(f"expected budgets such as 1,16,64, found {budgets!r}.")
    return EvaluationPlan(
        problems=_problems(suite, only),
        entries=tuple(entry for method in methods for entry in _entries(method, known)),
        budgets=tuple(sorted({int(word) for word in words})),
        seeds=tuple(range(num_seeds)),
        folder=folder,
    )


def _problems(suite: str, only: tuple[str, ...]) -> NamedProblems:
    known = load_suite(suite).problems
    specs: list[ProblemSpec] = [known.spec(number) for number in range(len(known.names))]
    chosen = [spec for spec in specs if spec.name.startswith(only or ("",))]
    if not chosen:
        raise PolicyError(f"expected problems whose names begin with {', '.join(only)}; {suite!r} has none.")
    return NamedProblems(chosen)


def _known(folders: Sequence[Path]) -> list[_Known]:
    """The policies in `folders`; raises `PolicyError` where there is none, or the same one twice."""
    found: dict[str, Path] = {}
    known = []
    for folder in folders:
        policy = load_policy(folder)
        digest = policy.digest[:12]
        if digest in found:
            raise PolicyError(
                f"expected different policies, found the same weights in {found[digest]} and {folder}."
                " Name each policy once: its runs would count twice."
            )
        found[digest] = folder
        label = PolicyLabel(digest, policy.name, policy.seed, policy.num_members)
        known.append(_Known(label, learned_methods(folder)))
    return known


def _entries(method: Method, known: Sequence[_Known]) -> list[Entry]:
    """`method` as it is, or with each policy."""
    if method.name not in known[0].methods:
        return [Entry(method)]
    return [Entry(policy.methods[method.name], policy.label) for policy in known]
