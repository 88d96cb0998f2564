"""Rounds of Metropolis chains that walk side by side and share the best strategy at restarts.

Chain c walks (`soaprl.search.chain.walk`) with a stream of random numbers of its own. The chains walk in
rounds of `ChainSettings.round_steps` steps and know nothing of each other within a round. Between two rounds,
a chain is *stuck* if its last `ChainSettings.stuck_steps` steps or more, since it began or restarted, brought
nothing better than the best strategy that it knows of. A stuck chain restarts: the best strategy of all
chains becomes its current one and the best that it knows of, its temperature is set by that strategy's time,
and its stream of random numbers goes on. Implemented in `restarted`.

What a round does is a function of where the chains stood before it; a restart is a function of where they
stand after it. So it makes no difference how many threads there are, which of them walks which chain and how
fast, and with a budget of evaluations the result is a function of the seed and the number of chains. Each
chain is between two steps at any moment that it is looked at, whatever the others do, so that an interrupted
search goes on in the middle of a round.

The limits: a chain's share of the evaluations is that of chains that take turns (`soaprl.search.ensemble`),
and all chains end at the same search time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from math import inf
from queue import SimpleQueue
from threading import Event

from soaprl.errors import SearchError
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.ensemble import Ensemble, Member
from soaprl.search.proposals import Proposals
from soaprl.search.task import Budget, Evaluator, improved
from soaprl.strategy.strategy import Strategy

LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """How the chains share what they find.

    Attributes:
        round_steps: Steps of each chain between two looks at the others.
        stuck_steps: Steps without improvement after which a chain restarts from the best of all. On NMT and
            RNNLM on ``p100-4x4``, with four chains, 8,000 evaluations and five seeds, all of 128, 256, 512
            and 1024 found faster strategies on average than one chain did, and the shorter ones the fastest.
    """

    round_steps: int = 64
    stuck_steps: int = 256

    def __post_init__(self) -> None:
        for name in ("round_steps", "stuck_steps"):
            if getattr(self, name) < 1:
                raise SearchError(f"expected {name} of at least 1, found {getattr(self, name)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainsRun:
    """What does not change while the chains walk.

    Attributes:
        evaluators: One for each thread; all answer the same.
        proposals: Draws configurations.
        starts: Where each chain begins.
        seed: Seed of the search.
        budget: Of all chains together.
        beta_relative: See `soaprl.search.chain`.
        settings: How the chains share what they find.
        elapsed: Search time in seconds.
        watch: Told several times a second, and after each round, where the chains stand.
    """

    evaluators: Sequence[Evaluator]
    proposals: Proposals
    starts: Sequence[Strategy]
    seed: int
    budget: Budget
    beta_relative: float
    settings: ChainSettings
    elapsed: Callable[[], float]
    watch: Callable[[Ensemble], None]


class _Round:
    """The round at hand: where its chains stand now, and whether they must stop.

    The thread that walks chain c alone writes entry c, whole entries at a time.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.num_rounds = ensemble.num_rounds
        self.members: list[Member | None] = list(ensemble.members)
        self.steps: list[tuple[Chain, int] | None] = [None] * len(ensemble.members)
        self.stop = Event()

    def ensemble(self) -> Ensemble:
        """Where the chains stand, each between two of its steps."""
        members = tuple(
            member._replace(chain=at[0]._replace(step=at[1])) if member and at else member
            for member, at in zip(self.members, list(self.steps), strict=True)
        )
        return Ensemble(num_rounds=self.num_rounds, members=members)


def walk_chains(run: ChainsRun, ensemble: Ensemble) -> tuple[Ensemble, bool]:
    """Walk until the budget is spent; returns where it ended, and whether a KeyboardInterrupt ended it."""
    at_hand = _Round(ensemble)
    with ThreadPoolExecutor(max_workers=len(run.evaluators), thread_name_prefix="chain") as pool:
        try:
            while True:
                _walk_round(run, pool, at_hand)
                ended = at_hand.ensemble()
                if at_hand.stop.is_set() or not _complete(run, ended):
                    return ended, at_hand.stop.is_set()
                if run.budget.spent(ended.num_evaluations, run.elapsed()):
                    return ended, False
                at_hand = _Round(restarted(run, ended))
        except KeyboardInterrupt:
            # The pool waits for its threads on leaving: they end with the steps they are at.
            at_hand.stop.set()
        except BaseException:
            at_hand.stop.set()
            raise
    return at_hand.ensemble(), True


def restarted(run: ChainsRun, ensemble: Ensemble) -> Ensemble:
    """The ensemble at the beginning of its next round: stuck chains are where the best of all is."""
    assert ensemble.leader is not None
    leader = ensemble.members[ensemble.leader]
    assert leader is not None
    best = leader.chain.best
    members: list[Member | None] = []
    for member in ensemble.members:
        if member is None or member.chain.step - member.chain.improved_step < run.settings.stuck_steps:
            members.append(member)
            continue
        chain = member.chain
        at_best = begin(
            best.strategy,
            best.evaluation,
            beta_relative=run.beta_relative,
            best=replace(best, history=chain.best.history),
            elapsed_s=chain.improved_s,
        )
        at_best = at_best._replace(step=chain.step, accepted=chain.accepted, improved_step=chain.step)
        members.append(member._replace(chain=at_best, restarts=member.restarts + 1))
    return Ensemble(num_rounds=ensemble.num_rounds + 1, members=tuple(members))


def _walk_round(run: ChainsRun, pool: ThreadPoolExecutor, at_hand: _Round) -> None:
    """Walks every chain to the end of the round, or of its share, or until it must stop."""
    idle: SimpleQueue[Evaluator] = SimpleQueue()
    for evaluator in run.evaluators:
        idle.put(evaluator)
    futures = [pool.submit(_walk_member, run, idle, at_hand, c) for c in range(len(run.starts))]
    pending = set(futures)
    while pending:
        _, pending = wait(pending, timeout=LOOK_EVERY_S)
        run.watch(at_hand.ensemble())
    for future in futures:
        future.result()


def _walk_member(run: ChainsRun, idle: SimpleQueue[Evaluator], at_hand: _Round, number: int) -> None:
    """Walks one chain in one thread with an evaluator that no other thread has at the moment."""
    evaluator = idle.get()
    try:
        share = _share(run, number)
        if share < 1 or at_hand.stop.is_set() or run.elapsed() >= (run.budget.seconds or inf):
            return
        if at_hand.members[number] is None:
            at_hand.members[number] = _begun(run, evaluator, number)
        member = at_hand.members[number]
        assert member is not None

        def visit(chain: Chain, step: int, now: float) -> None:
            at_hand.steps[number] = chain, step
            if at_hand.stop.is_set():
                raise KeyboardInterrupt

        walker = Walker(
            evaluator=evaluator,
            proposals=run.proposals,
            seed=run.seed,
            stream=number + 1,
            first_number=0,
            elapsed=run.elapsed,
            visit=visit,
        )
        end = min(share - 1, (at_hand.num_rounds + 1) * run.settings.round_steps)
        limits = Limits(steps=end, end_s=run.budget.seconds or inf, idle_steps=inf, idle_s=inf)
        chain, stopped = walk(walker, member.chain, limits)
        at_hand.steps[number] = chain, chain.step
        if stopped:
            at_hand.stop.set()
    except KeyboardInterrupt:
        at_hand.stop.set()
    except BaseException:
        # The other chains need not go on for an error to be reported.
        at_hand.stop.set()
        raise
    finally:
        idle.put(evaluator)


def _begun(run: ChainsRun, evaluator: Evaluator, number: int) -> Member:
    """A chain after the evaluation of its start."""
    strategy = run.starts[number]
    evaluation = evaluator.evaluate(strategy)
    now = run.elapsed()
    best = improved(None, strategy, evaluation, number=0, elapsed_s=now)
    chain = begin(strategy, evaluation, beta_relative=run.beta_relative, best=best, elapsed_s=now)
    return Member(chain=chain, initial_time_s=evaluation.iteration_time_s, restarts=0)


def _share(run: ChainsRun, number: int) -> float:
    """Evaluations of a chain in all: those whose numbers are within the budget."""
    if run.budget.evaluations is None:
        return inf
    whole, more = divmod(run.budget.evaluations, len(run.starts))
    return whole + (number < more)


def _complete(run: ChainsRun, ensemble: Ensemble) -> bool:
    """Whether all chains are at the end of the round, not stopped before it by a limit."""
    end = (ensemble.num_rounds + 1) * run.settings.round_steps
    return all(member is not None and member.chain.step >= end for member in ensemble.members)
