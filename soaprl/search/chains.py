"""Metropolis search with several chains side by side, as one resumable task.

How the chains walk and share is in `soaprl.search.rounds`, where they stand in `soaprl.search.ensemble`. This
module keeps time, reports, and keeps the state of all chains in one file.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from soaprl.search.ensemble import Ensemble, ensemble_state, resumed_ensemble
from soaprl.search.proposals import Proposals
from soaprl.search.rounds import LOOK_EVERY_S, ChainSettings, ChainsRun, walk_chains
from soaprl.search.state import Signature, save_state
from soaprl.search.task import Evaluator, ProgressReport, SearchResult, SearchTask, search_result
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class SeveralChains:
    """What chains side by side search with.

    Attributes:
        task: Problem, budget, seed, state file.
        method: What the result is called.
        evaluators: One for each thread; all answer as the task's evaluator does.
        proposals: Draws configurations.
        starts: Where each chain begins.
        signature: What a search that goes on from the state must have in common with this one.
        beta_relative: See `soaprl.search.chain`.
        sharing: How the chains share what they find.
        save_every_s: Seconds between writes of the state file.
    """

    task: SearchTask
    method: str
    evaluators: Sequence[Evaluator]
    proposals: Proposals
    starts: Sequence[Strategy]
    signature: Signature
    beta_relative: float
    sharing: ChainSettings
    save_every_s: float


class _Search:
    """The search at work: its clock, and when it reports and saves."""

    def __init__(self, several: SeveralChains, elapsed_s: float) -> None:
        self.several = several
        self._origin_s = several.task.clock() - elapsed_s
        self._report_s = elapsed_s
        self._save_s = elapsed_s + several.save_every_s

    def elapsed(self) -> float:
        """Search time, over all sessions of a resumed search."""
        return self.several.task.clock() - self._origin_s

    def watch(self, ensemble: Ensemble) -> None:
        """Reports and saves where the chains stand, if it is time to."""
        now = self.elapsed()
        if now >= self._report_s:
            self._report_s = now + LOOK_EVERY_S
            self.report(ensemble, now)
        if now >= self._save_s:
            self._save_s = now + self.several.save_every_s
            self.save(ensemble)

    def report(self, ensemble: Ensemble, now: float) -> None:
        """Tells the task's listener where the chains stand, once there is something to tell."""
        several, leader = self.several, ensemble.leader
        member = None if leader is None else ensemble.members[leader]
        if several.task.progress is None or member is None:
            return
        several.task.progress(
            ProgressReport(
                method=several.method,
                stage=f"{len(several.starts)} chains",
                num_evaluations=ensemble.num_evaluations,
                elapsed_s=now,
                best_time_s=member.chain.best.time_s,
                current_time_s=member.chain.evaluation.iteration_time_s,
                num_accepted=ensemble.num_accepted,
            )
        )

    def save(self, ensemble: Ensemble) -> None:
        """Writes the state file, if there is to be one."""
        path = self.several.task.state_path
        if path is not None:
            save_state(path, ensemble_state(ensemble, self.elapsed(), self.several.signature))


def search_side_by_side(several: SeveralChains) -> SearchResult:
    """The result of all chains; see the module.

    A KeyboardInterrupt ends the search: the state is saved and the best strategy so far is returned.

    Raises:
        SearchError: The state file is missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    task = several.task
    ensemble, elapsed_s = Ensemble(num_rounds=0, members=(None,) * len(several.starts)), 0.0
    if task.resume:
        ensemble, elapsed_s = resumed_ensemble(task, several.signature)
    search = _Search(several, elapsed_s)
    run = ChainsRun(
        evaluators=several.evaluators,
        proposals=several.proposals,
        starts=several.starts,
        seed=task.seed,
        budget=task.budget,
        beta_relative=several.beta_relative,
        settings=several.sharing,
        elapsed=search.elapsed,
        watch=search.watch,
    )
    ensemble, interrupted = walk_chains(run, ensemble)
    best = ensemble.best
    if best is None:
        raise KeyboardInterrupt
    search.save(ensemble)
    with suppress(KeyboardInterrupt):
        # Everything is done and kept: an interrupt by the listener has nothing left to end.
        search.report(ensemble, search.elapsed())
    return search_result(
        method=several.method,
        seed=task.seed,
        best=best,
        initial_time_s=ensemble.begun[0].initial_time_s,
        num_evaluations=ensemble.num_evaluations,
        num_accepted=ensemble.num_accepted,
        search_time_s=search.elapsed(),
        interrupted=interrupted,
    )
