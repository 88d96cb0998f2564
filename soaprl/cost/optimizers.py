"""What an optimizer keeps and moves for each parameter: facts that time and memory both need."""

from dataclasses import dataclass

from soaprl.errors import find_named


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """One optimizer.

    Attributes:
        name: As users and the zoo write it; ``sgd`` is the one without momentum.
        num_states: Tensors kept for each parameter, of the parameter's size and dtype.
    """

    name: str
    num_states: int

    def state_bytes(self, parameter_bytes: int) -> int:
        """Bytes kept beside parameters of `parameter_bytes` (and beside their gradients)."""
        return self.num_states * parameter_bytes

    def update_traffic_bytes(self, parameter_bytes: int) -> int:
        """Memory traffic of one update: read gradient, read and write the parameter and each state."""
        return (3 + 2 * self.num_states) * parameter_bytes


_OPTIMIZERS = (
    OptimizerFacts(name="sgd", num_states=0),
    OptimizerFacts(name="momentum", num_states=1),
    OptimizerFacts(name="adam", num_states=2),
)


def optimizer_names() -> tuple[str, ...]:
    """Names that `optimizer_facts` knows."""
    return tuple(facts.name for facts in _OPTIMIZERS)


def optimizer_facts(name: str) -> OptimizerFacts:
    """The facts of the optimizer called `name`.

    Raises:
        UnknownNameError: There is no such optimizer.
    """
    return find_named("optimizer", name, _OPTIMIZERS)
