"""Strategies from a policy: one operator after the other, several samples side by side.

A *sweep* decides every operator once, in topological order. The first one starts from data parallelism: each
operator sees what its predecessors have chosen, and that its successors have not been decided. Further sweeps
refine: everything has been decided, and each operator is decided again given all others. Only sampled, never
scored here: a sweep costs a few small matrix products for each operator, and not one evaluation.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from soaprl_envs.choices import Choices, choices
from soaprl_envs.context import Contexts
from soaprl_envs.features import ProblemFeatures, problem_features

from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl_agents.network import Decider, Encoding, collate, log_probabilities

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


class Decoded(NamedTuple):
    """Samples of a sweep.

    Attributes:
        chosen: i64 [B, N], the candidate of each operator.
        log_probability: f64 [B], of all choices of the sweep together.
    """

    chosen: IntArray
    log_probability: FloatArray


class ProblemPolicy:
    """A network, or an ensemble, that has encoded one problem.

    Attributes:
        network: The network.
        choices: The candidates it chooses among.
        features: What it has read.
        encoding: What it made of that.
    """

    def __init__(self, network: Decider, offered: Choices, features: ProblemFeatures) -> None:
        self.network = network
        self.choices = offered
        self.features = features
        with torch.inference_mode():
            self.encoding: Encoding = network.encode(collate([features]))

    @property
    def num_operators(self) -> int:
        """N."""
        return len(self.features.order)

    def log_probabilities(self, operator: int, context: NDArray[np.float32]) -> FloatArray:
        """Of the candidates of one operator in B contexts: f64 [B, K], minus infinity where masked.

        Args:
            operator: The operator.
            context: f32 [B, K, features].
        """
        with torch.inference_mode():
            rows = torch.full((len(context),), operator)
            decision = self.network.decide(self.encoding, rows, torch.from_numpy(context))
            found: FloatArray = log_probabilities(decision.scores.double(), decision.mask).numpy()
        return found

    def contexts(self, num_samples: int) -> Contexts:
        """Data parallelism, nothing decided, `num_samples` times."""
        return Contexts(self.choices, num_samples)

    def strategies(self, chosen: IntArray) -> list[Strategy]:
        """The strategies of choices [B, N]."""
        return [self.choices.strategy(row) for row in chosen]


def ready_policy(network: Decider, problem: Problem) -> ProblemPolicy:
    """`network` with `problem` encoded."""
    offered = choices(problem)
    return ProblemPolicy(network, offered, problem_features(offered))


def sweep(
    policy: ProblemPolicy,
    contexts: Contexts,
    rng: np.random.Generator,
    *,
    temperature: float | FloatArray = 1.0,
    num_greedy: int = 1,
) -> Decoded:
    """Decide every operator once, in all samples of `contexts`, which holds the choices afterwards.

    Args:
        policy: Chooses.
        contexts: Where the samples stand; they change.
        rng: Draws.
        temperature: Divides the scores: above 1 for more variety, below for less. One for all, or f64 [B].
        num_greedy: So many samples, the first ones, take what is most probable.
    """
    total = np.zeros(len(contexts.chosen))
    dividing = np.broadcast_to(temperature, total.shape)[:, None]
    for operator in policy.features.order.tolist():
        log_p = tempered(policy.log_probabilities(operator, contexts.row(operator, current=False)), dividing)
        candidate = draw(log_p, rng, num_greedy=num_greedy)
        total += log_p[np.arange(len(total)), candidate]
        contexts.choose(operator, candidate)
    return Decoded(contexts.chosen.copy(), total)


def spread_temperatures(num_samples: int, *, coolest: float = 0.2, warmest: float = 0.8) -> FloatArray:
    """A temperature for each sample, rising in equal ratios, f64 [B].

    A policy of many operators errs somewhere in nearly every sample at temperature 1, and cold samples are
    all alike; a spread serves few operators and many. On the validation problems with something to gain, the
    best of 16 samples took exp(0.042) times the teacher's time at temperature 1, exp(0.010) with the spread.
    """
    return np.geomspace(coolest, warmest, num_samples)


def tempered(log_probability: FloatArray, temperature: float | FloatArray) -> FloatArray:
    """The log-probabilities [..., K] of the distribution with its scores divided by `temperature`."""
    scaled = log_probability / temperature
    normal: FloatArray = scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)
    return normal


def draw(log_probability: FloatArray, rng: np.random.Generator, *, num_greedy: int = 0) -> IntArray:
    """A candidate for each row [B, K], by its probability; the first `num_greedy` rows the most probable."""
    noise = rng.gumbel(size=log_probability.shape)
    noise[:num_greedy] = 0.0
    drawn: IntArray = (log_probability + noise).argmax(axis=-1)
    return drawn
