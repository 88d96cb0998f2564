"""Joint search: configurations together with sharding, micro-batches and stages.

A change of what holds for a whole strategy (which ZeRO level, how many micro-batches) changes what every
operator's best configuration is, so that a walk of single changes never gets from one to another. So each
choice is an *arm* (`soaprl.search.joint.arms`) with a Metropolis walk of its own, and evaluations are dealt
out to the arms by successive halving (Jamieson, Talwalkar: *Non-stochastic best arm identification and
hyperparameter optimization*, AISTATS 2016):

    open      the starts of all arms of a wave are evaluated
    bracket   the best `arms` arms make s steps each, the better half of them 2 s, and so on to the last one
    again     with s twice as large, each walk from the best of its arm, and with the next wave opened

While nothing that was opened fits in memory, further waves are opened before the bracket. What has to be
estimated before a wave can be opened is estimated in pieces, so that a budget in seconds may end the search
between two of them. Arms are ranked by the best that they found (`soaprl.search.task.rank`). No budget has to
be known in advance, and a search with a larger budget goes on exactly where it ended.

One step changes some operators (`soaprl.search.joint.moves`) and is accepted with probability
min(1, exp(-(cost(S*) - cost(S)) / T)), with T the `temperature` times the time that the walk begins with in
this bracket. As in `soaprl.search.annealing`, the random number is drawn before the simulation, which may
stop as soon as the proposal is certain to be neither accepted nor the best of its arm.
"""

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from soaprl.errors import SearchError
from soaprl.search.experts import starts_for
from soaprl.search.joint.arms import Arm, Waves
from soaprl.search.joint.moves import Moves
from soaprl.search.state import Signature
from soaprl.search.stepping import Preparation, Replay, Scored, Trial, View, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, accepts, rank
from soaprl.strategy.strategy import Strategy

METHOD = "joint"
_PREPARING = "more micro-batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSettings:
    """How evaluations are dealt out.

    Attributes:
        arms: Arms in a bracket, at most.
        first_steps: Steps of each of them at the beginning of the first bracket; twice as many in each next.
        temperature: Of the walks, relative to the time that they begin with.
    """

    arms: int = 4
    first_steps: int = 8
    temperature: float = 2e-4

    def __post_init__(self) -> None:
        if self.arms < 1 or self.first_steps < 1:
            raise SearchError(
                f"expected 1 or more arms and first_steps, found {self.arms} and {self.first_steps}."
            )
        if not 0 < self.temperature < inf:
            raise SearchError(f"expected a temperature above 0, found {self.temperature}.")


def joint(
    task: SearchTask, start: Strategy | None = None, settings: JointSettings | None = None
) -> SearchResult:
    """Search configurations, sharding and micro-batches together; see the module.

    What the task says of sharding or micro-batches is left as it is. A start is evaluated first and has an
    arm of its own, which keeps the start's sharding and micro-batches; the other arms are as without it.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    given = () if start is None else starts_for(task, start)
    return run_procedure(task, Joint(task, settings or JointSettings(), given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where an arm stands.

    Attributes:
        num_starts: Starts evaluated.
        step: Steps in all.
        current: The current strategy; None before the first evaluation.
        best: The best one.
        scale_s: Time that the walk began with in this bracket.
        scale_bytes: Peak memory that it began with.
    """

    num_starts: int = 0
    step: int = 0
    current: Scored | None = None
    best: Scored | None = None
    scale_s: float = 0.0
    scale_bytes: float = 0.0

    @property
    def rank(self) -> tuple[bool, float]:
        """The rank of the best strategy."""
        assert self.best is not None, "the starts of an arm are evaluated when it is opened"
        return rank(self.best.evaluation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """Where joint search stands.

    Attributes:
        waves: Waves opened.
        wanted: Waves that are to be open; more than `waves` while one is prepared.
        walks: Where each arm of these stands, in their order.
        bracket: Number of the bracket.
        alive: The arms in this round of the bracket; empty while a bracket is to begin.
        turn: Which of them walks.
        left: Steps that it still makes in this round.
        num_accepted: Proposals accepted.
    """

    waves: int = 0
    wanted: int = 1
    walks: tuple[Walk, ...] = ()
    bracket: int = 0
    alive: tuple[int, ...] = ()
    turn: int = 0
    left: int = 0
    num_accepted: int = 0


class Joint:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self, task: SearchTask, settings: JointSettings, given: tuple[tuple[str, Strategy], ...] = ()
    ) -> None:
        self._task, self._settings, self._given = task, settings, given
        self._waves = Waves(task, given)
        # The arms of the waves at hand, and where those of each wave end.
        self._arms: list[Arm] = []
        self._ends = [0]
        self._moves: dict[int, Moves] = {}

    @property
    def settings(self) -> Signature:
        """How evaluations are dealt out, what the task leaves open, and the start's name."""
        asked = {"sharding": str(self._task.sharding), "micro_batches": self._task.micro_batches}
        return {**asdict(self._settings), **asked, "starts": ", ".join(name for name, _ in self._given)}

    def begin(self) -> Halving:
        """Nothing is opened."""
        return Halving()

    def propose(self, state: Halving) -> Trial | Preparation:
        """The next start, or the next step of the arm whose turn it is."""
        state = self._settled(state)
        if not self._fetched(state.wanted):
            self._waves.prepare()
            return Preparation(_PREPARING)
        number = self._at_hand(state)
        arm, walk = self._arms[number], state.walks[number]
        if walk.num_starts < len(arm.starts):
            limit_s = inf if walk.best is None else walk.best.limit_s
            return Trial(arm.starts[walk.num_starts][1], limit_s)
        assert walk.current is not None
        assert walk.best is not None
        moves = self._moves_of(arm)
        strategy = moves.changed(number, walk.step, walk.current.strategy, self._donors(state, number))
        margin_s = moves.energy(number, walk.step) * self._settings.temperature * walk.scale_s
        return Trial(strategy, max(walk.current.limit_s + margin_s, walk.best.limit_s))

    def advance(self, state: Halving, trial: Trial, evaluation: Evaluation | None) -> Halving:
        """After the trial; the next arm, round or bracket begins where the last one is over."""
        state = self._settled(state)
        number = self._at_hand(state)
        arm, walk = self._arms[number], state.walks[number]
        tried = None if evaluation is None else Scored(trial.strategy, evaluation)
        best = walk.best
        if tried is not None and (best is None or rank(tried.evaluation) < rank(best.evaluation)):
            best = tried
        if walk.num_starts < len(arm.starts):
            walk = _begun(replace(walk, num_starts=walk.num_starts + 1, best=best))
            return self._settled(_with(state, number, walk))
        energy = self._moves_of(arm).energy(number, walk.step) * self._settings.temperature
        assert walk.current is not None
        accepted = tried is not None and accepts(
            walk.current.evaluation,
            tried.evaluation,
            longer_s=energy * walk.scale_s,
            larger_bytes=energy * walk.scale_bytes,
        )
        walk = replace(walk, step=walk.step + 1, current=tried if accepted else walk.current, best=best)
        state = replace(state, left=state.left - 1, num_accepted=state.num_accepted + accepted)
        return self._settled(_with(state, number, walk))

    def view(self, state: Halving) -> View:
        """The bracket, and the arm whose turn it is."""
        if state.waves < state.wanted or len(self._arms) < len(state.walks):
            return View(_PREPARING, 0.0, state.num_accepted)
        number = self._at_hand(state)
        current = state.walks[number].current
        stage = f"bracket {state.bracket + 1}: {self._arms[number].name}"
        return View(
            stage, 0.0 if current is None else current.evaluation.iteration_time_s, state.num_accepted
        )

    def pack(self, state: Halving) -> dict[str, Any]:
        """Numbers as they are, strategies as the state file has them."""
        return {
            "waves": state.waves,
            "wanted": state.wanted,
            "walks": [_packed_walk(walk) for walk in state.walks],
            "bracket": state.bracket,
            "alive": list(state.alive),
            "turn": state.turn,
            "left": state.left,
            "num_accepted": state.num_accepted,
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> Halving:
        """Where it stood."""
        return Halving(
            waves=int(content["waves"]),
            wanted=int(content["wanted"]),
            walks=tuple(_unpacked_walk(walk, replay) for walk in content["walks"]),
            bracket=int(content["bracket"]),
            alive=tuple(int(number) for number in content["alive"]),
            turn=int(content["turn"]),
            left=int(content["left"]),
            num_accepted=int(content["num_accepted"]),
        )

    def _fetched(self, num_waves: int) -> bool:
        """Whether the arms of so many waves, or of all there are, are at hand; takes those that are ready."""
        while len(self._ends) <= num_waves:
            if not self._waves.ready(len(self._ends) - 1):
                return False
            wave = self._waves.wave(len(self._ends) - 1)
            if not wave:
                break
            self._arms += wave
            self._ends.append(len(self._arms))
        return True

    def _opened(self, state: Halving) -> Halving:
        """`state` with the waves open that it wants, as far as there are so many; they are at hand."""
        waves = min(state.wanted, len(self._ends) - 1)
        new = self._ends[waves] - self._ends[state.waves]
        return replace(state, waves=waves, wanted=waves, walks=(*state.walks, *(Walk(),) * new))

    def _may_open(self, state: Halving) -> bool:
        """Whether there may be one more wave."""
        return not self._waves.ready(state.waves) or bool(self._waves.wave(state.waves))

    def _at_hand(self, state: Halving) -> int:
        """The arm with a start to evaluate, or whose turn it is."""
        for number, walk in enumerate(state.walks):
            if walk.num_starts < len(self._arms[number].starts):
                return number
        return state.alive[state.turn]

    def _settled(self, state: Halving) -> Halving:
        """`state` moved on to where an evaluation is due, or a wave that is not ready."""
        while self._fetched(state.wanted):
            if state.waves < state.wanted:
                state = self._opened(state)
            if any(w.num_starts < len(a.starts) for w, a in zip(state.walks, self._arms, strict=False)):
                return state
            if not state.alive:
                if all(walk.rank[0] for walk in state.walks) and self._may_open(state):
                    state = replace(state, wanted=state.waves + 1)
                else:
                    state = self._bracket_begun(state)
            elif state.left > 0:
                return state
            elif state.turn + 1 < len(state.alive):
                state = replace(state, turn=state.turn + 1, left=self._steps(state))
            elif len(state.alive) > 1:
                kept = self._ranked(state, state.alive)[: (len(state.alive) + 1) // 2]
                state = replace(state, alive=tuple(sorted(kept)), turn=0)
                state = replace(state, left=self._steps(state))
            else:
                state = replace(state, bracket=state.bracket + 1, alive=(), turn=0, wanted=state.waves + 1)
        return state

    def _bracket_begun(self, state: Halving) -> Halving:
        kept = self._ranked(state, range(len(state.walks)))[: self._settings.arms]
        walks = tuple(_begun(walk) if number in kept else walk for number, walk in enumerate(state.walks))
        state = replace(state, walks=walks, alive=tuple(sorted(kept)), turn=0)
        return replace(state, left=self._steps(state))

    def _steps(self, state: Halving) -> int:
        """Steps of each arm in the round at hand: half as many arms have twice as many."""
        most = min(self._settings.arms, len(state.walks))
        rounds = (most - 1).bit_length() - (len(state.alive) - 1).bit_length()
        return int(self._settings.first_steps * 2 ** (state.bracket + rounds))

    def _ranked(self, state: Halving, numbers: "range | tuple[int, ...]") -> list[int]:
        """Arms by the best that they found; of equal ones the earlier first."""
        return sorted(numbers, key=lambda number: (state.walks[number].rank, number))

    def _moves_of(self, arm: Arm) -> Moves:
        if arm.micro_batches not in self._moves:
            graph = self._waves.graph(arm.micro_batches)
            num_devices = self._task.problem.cluster.num_devices
            self._moves[arm.micro_batches] = Moves(graph, num_devices, self._task.seed)
        return self._moves[arm.micro_batches]

    def _donors(self, state: Halving, number: int) -> list[Strategy]:
        """The starts of an arm, and the best of the other arms with as many micro-batches."""
        arm = self._arms[number]
        donors = [strategy for _, strategy in arm.starts]
        for other, walk in enumerate(state.walks):
            if other != number and self._arms[other].micro_batches == arm.micro_batches and walk.best:
                donors.append(walk.best.strategy)
        return donors


def _with(state: Halving, number: int, walk: Walk) -> Halving:
    return replace(state, walks=(*state.walks[:number], walk, *state.walks[number + 1 :]))


def _begun(walk: Walk) -> Walk:
    """A walk that begins with the best of its arm."""
    assert walk.best is not None, "the first start is evaluated without a limit"
    return replace(
        walk,
        current=walk.best,
        scale_s=walk.best.evaluation.iteration_time_s,
        scale_bytes=float(walk.best.evaluation.peak_memory_bytes),
    )


def _packed_walk(walk: Walk) -> dict[str, Any]:
    strategies = {"current": walk.current, "best": walk.best}
    return {
        "num_starts": walk.num_starts,
        "step": walk.step,
        "scale_s": walk.scale_s,
        "scale_bytes": walk.scale_bytes,
        **{name: None if scored is None else packed(scored) for name, scored in strategies.items()},
    }


def _unpacked_walk(content: dict[str, Any], replay: Replay) -> Walk:
    return Walk(
        num_starts=int(content["num_starts"]),
        step=int(content["step"]),
        current=None if content["current"] is None else replay(content["current"]),
        best=None if content["best"] is None else replay(content["best"]),
        scale_s=float(content["scale_s"]),
        scale_bytes=float(content["scale_bytes"]),
    )
