"""The problems of a generator, made ready, as one or several environments use them."""

from collections import OrderedDict

from soaprl.errors import SimulationError
from soaprl_envs.arena import Arena, make_arena
from soaprl_envs.choices import MIN_CANDIDATES
from soaprl_envs.problems.generators import ProblemGenerator
from soaprl_envs.spaces import SpaceLimits
from soaprl_envs.walks import WalkPool


class ArenaPool:
    """The problems of a generator, each made ready once; environments may share one pool in one thread.

    They then share the walks, too: what simulators have computed takes much more memory than the problems.

    Args:
        generator: The problems.
        limits: The largest problem that is let in.
        keep: How many are kept; beyond that, the one used longest ago is made ready anew when needed.

    Attributes:
        generator: The problems.
        limits: The largest problem that is let in.
        walks: The walks that no environment is on.
    """

    def __init__(self, generator: ProblemGenerator, limits: SpaceLimits, *, keep: int = 64) -> None:
        if not generator.names:
            raise SimulationError("expected a generator with at least one problem, found none.")
        self.generator = generator
        self.limits = limits
        self.walks = WalkPool()
        self._keep = keep
        self._known: OrderedDict[int, Arena] = OrderedDict()

    @property
    def num_problems(self) -> int:
        """Number of problems."""
        return len(self.generator.names)

    def arena(self, number: int) -> Arena:
        """Problem `number`.

        Raises:
            SimulationError: There is no such problem, or it is larger than the limits.
            SoaprlError: It cannot be built.
        """
        if not 0 <= number < self.num_problems:
            raise SimulationError(f"expected a problem from 0 to {self.num_problems - 1}, found {number}.")
        if number not in self._known:
            problem, name = self.generator.problem(number), self.generator.names[number]
            self.limits.check(name, problem)
            self._known[number] = make_arena(
                problem,
                number=number,
                name=name,
                spec=self.generator.spec(number),
                max_candidates=max(self.limits.candidates, MIN_CANDIDATES),
            )
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        self._known.move_to_end(number)
        return self._known[number]
