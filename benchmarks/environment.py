"""Measures `soaprl/Placement-v0` alone: steps a second, without any policy.

    python benchmarks/environment.py [--cluster p100-2x4] [--episodes 30] [--out benchmarks/environment.md]
    python benchmarks/environment.py --soak small,validation [--steps 10000]

Actions are drawn beforehand. *random* draws each uniformly among the operator's candidates; *near* keeps
data parallelism for nine operators of ten, as a trained policy mostly does. With *rewards* ``each`` every
step that changes the strategy is a delta simulation; with ``last`` there is one simulation an episode. After
the warm-up (twice as many episodes as are measured), *median* is of the wall-clock times of single steps,
which other work on the machine hardly changes; *mean* is of all steps and resets by processor time, and
contains what the simulator still learns about layouts that it has not seen.

The last two columns are wall-clock steps a second of all of several processes together, after the same
warm-up in each: *apart*, when each steps an environment of its own as fast as it can, and *in step*, when
they are Gymnasium's `AsyncVectorEnv`, which waits for the slowest after each step. Below the table stands
what there is to gain: how much longer a loop that only computes takes in several processes at once, and what
a step of that vector environment takes where environments do nothing.

``--soak`` takes that many random steps on each of the suites instead, and says what came of it.
"""

import argparse
import multiprocessing
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import soaprl_envs  # registers the environments
from numpy.typing import NDArray
from soaprl_envs.problems import NamedProblems, ProblemSpec, load_suite

from soaprl.atomic import write_text_atomic

# A synthetic model of 100 operators, and two of the zoo of about as many.
MODELS = ("synthetic-52", "gpt2", "resnet-101")
SYNTHETIC_OPERATORS = 120
POLICIES = (("each", 1.0), ("each", 0.1), ("last", 1.0))
NUM_PROCESSES = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all models and policies and writes the table, or soaks suites."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cluster", default="p100-2x4")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--soak", default="")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args(arguments)
    if options.soak:
        for suite in options.soak.split(","):
            print(soaked(suite, options.steps), flush=True)
        return
    lines = list(_head(options.models, options.cluster, options.episodes))
    for model in options.models.split(","):
        for rewards, share in POLICIES:
            lines.append(measured(model, options.cluster, options.episodes, rewards, share))
            print(lines[-1], flush=True)
    lines += ["", possible(options.models.split(",")[0], options.cluster)]
    write_text_atomic(options.out, "\n".join(lines) + "\n")


def measured(model: str, cluster: str, episodes: int, rewards: str, share: float) -> str:
    """A row of the table: one model under one policy.

    Args:
        model: A model as `ProblemSpec` names it.
        cluster: A cluster.
        episodes: How many are measured.
        rewards: As `PlacementEnv` takes them.
        share: The share of operators that leave data parallelism.
    """
    make = partial(_environment, model, cluster, rewards)
    environment = make()
    environment.reset(seed=0)
    mask = environment.unwrapped.arena.choices.mask
    rng = np.random.default_rng(0)
    for _ in range(2 * episodes):
        _episode(environment, _actions(rng, mask, share))
    drawn = [_actions(rng, mask, share) for _ in range(episodes)]
    before_s, step_s = time.process_time(), []
    for actions in drawn:
        step_s += _episode(environment, actions)
    mean_s = (time.process_time() - before_s) / len(step_s)
    policy = "random" if share == 1.0 else "near"
    apart = _apart_rate(make, mask, share, episodes)
    vector = _vector_rate(make, mask, share, episodes)
    cells = (
        f"{model} | {len(mask)} | {policy} | {rewards} | {1e6 * np.median(step_s):.0f}"
        f" | {1 / np.median(step_s):,.0f} | {1e6 * mean_s:.0f} | {1 / mean_s:,.0f}"
        f" | {apart:,.0f} | {vector:,.0f}"
    )
    return f"| {cells} |"


def possible(model: str, cluster: str) -> str:
    """What several processes could do on this machine, whatever they simulate."""
    environment = _environment(model, cluster, "each")
    observed, information = environment.reset(seed=0)
    num_bytes = sum(values.nbytes for values in observed.values())
    vector = gymnasium.vector.AsyncVectorEnv([partial(_Idle, environment, information)] * NUM_PROCESSES)
    vector.reset(seed=0)
    times = []
    for _ in range(2000):
        before_s = time.perf_counter()
        vector.step(np.zeros(NUM_PROCESSES, np.int64))
        times.append(time.perf_counter() - before_s)
    vector.close()
    one_s, all_s = (max(_together([_compute] * count)) for count in (1, NUM_PROCESSES))
    return (
        f"A loop that only computes takes {all_s / one_s:.2f} times as long in {NUM_PROCESSES} processes at"
        f" once as in one. A step of `AsyncVectorEnv` takes {1e6 * np.median(times):.0f} us (median) with"
        f" {NUM_PROCESSES} environments that do nothing but return the same observation of {num_bytes:,}"
        " bytes and the same information."
    )


def soaked(suite: str, num_steps: int) -> str:
    """Takes random steps on a suite, whose problems are drawn at random; says what came of it."""
    problems = load_suite(suite).problems
    environment = gymnasium.make("soaprl/Placement-v0", problems=suite)
    environment.action_space.seed(0)
    observed, _ = environment.reset(seed=0)
    seen, episodes, began_s = set(), 0, time.perf_counter()
    gains: list[float] = []
    for _ in range(num_steps):
        observed, reward, ended, _, information = environment.step(environment.action_space.sample())
        assert np.isfinite(reward)
        assert all(np.isfinite(values).all() for values in observed.values())
        seen.add(information["problem"])
        if ended:
            gains.append(information["speedup"])
            episodes += 1
            environment.reset()
    return (
        f"{suite}: {num_steps:,} random steps, {episodes} episodes on {len(seen)} of {len(problems.names)}"
        f" problems in {time.perf_counter() - began_s:.0f} s, speed-ups {min(gains, default=1):.2f} to"
        f" {max(gains, default=1):.2f}"
    )


def _environment(model: str, cluster: str, rewards: str) -> gymnasium.Env:
    spec = ProblemSpec(model=model, cluster=cluster, max_operators=SYNTHETIC_OPERATORS)
    return gymnasium.make(
        next(name for name in soaprl_envs.ENVIRONMENTS if "Placement" in name),
        problems=NamedProblems([spec]),
        rewards=rewards,
        disable_env_checker=True,
    )


def _actions(rng: np.random.Generator, mask: NDArray[np.bool_], share: float) -> list[int]:
    """One episode's actions."""
    drawn = rng.integers(mask.sum(axis=1))
    return np.where(rng.random(len(mask)) < share, drawn, 0).tolist()


def _episode(environment: gymnasium.Env, actions: list[int]) -> list[float]:
    """Wall-clock seconds of the reset and of each step."""
    before_s = time.perf_counter()
    environment.reset()
    times = [time.perf_counter() - before_s]
    for action in actions:
        before_s = time.perf_counter()
        environment.step(action)
        times.append(time.perf_counter() - before_s)
    return times


class _Idle(gymnasium.Env):
    """An environment that does nothing, with the spaces of another."""

    def __init__(self, like: gymnasium.Env, information: dict[str, Any]) -> None:
        self.observation_space, self.action_space = like.observation_space, like.action_space
        self._observed, self._information = self.observation_space.sample(), information

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The observation that it always returns."""
        return self._observed, dict(self._information)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The same again."""
        return self._observed, 0.0, False, False, dict(self._information)


def _compute(wait: Callable[[], object]) -> float:
    """Seconds of a loop of additions."""
    wait()
    began_s, total = time.perf_counter(), 0
    for number in range(20_000_000):
        total += number
    return time.perf_counter() - began_s


def _walk_apart(
    make: partial[gymnasium.Env],
    mask: NDArray[np.bool_],
    share: float,
    episodes: int,
    seed: int,
    wait: Callable[[], object],
) -> float:
    """Seconds of the measured episodes of one process."""
    environment, rng = make(), np.random.default_rng(seed)
    environment.reset(seed=seed)
    for _ in range(2 * episodes):
        _episode(environment, _actions(rng, mask, share))
    wait()
    began_s = time.perf_counter()
    for _ in range(episodes):
        _episode(environment, _actions(rng, mask, share))
    return time.perf_counter() - began_s


def _together(works: Sequence[Callable[[Callable[[], object]], float]]) -> list[float]:
    """What each work returns in a process of its own; each gets a function that waits for the others."""
    # Works need not be picklable.
    forking = multiprocessing.get_context("fork")
    barrier, found = forking.Barrier(len(works)), forking.SimpleQueue()

    def run(work: Callable[[Callable[[], object]], float]) -> None:
        try:
            found.put(work(barrier.wait))
        except BaseException:
            barrier.abort()
            found.put(np.nan)
            raise

    processes = [forking.Process(target=run, args=(work,)) for work in works]
    for process in processes:
        process.start()
    seconds = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return seconds


def _apart_rate(make: partial[gymnasium.Env], mask: NDArray[np.bool_], share: float, episodes: int) -> float:
    """Wall-clock steps a second of several processes that do not wait for each other."""
    works = [partial(_walk_apart, make, mask, share, episodes, seed) for seed in range(NUM_PROCESSES)]
    return NUM_PROCESSES * episodes * len(mask) / max(_together(works))


def _vector_rate(make: partial[gymnasium.Env], mask: NDArray[np.bool_], share: float, episodes: int) -> float:
    """Wall-clock steps a second of several processes that wait for each other."""
    vector = gymnasium.vector.AsyncVectorEnv([make] * NUM_PROCESSES)
    rng = np.random.default_rng(1)
    vector.reset(seed=0)
    began_s = 0.0
    for episode in range(3 * episodes):
        if episode == 2 * episodes:
            began_s = time.perf_counter()
        for actions in zip(*(_actions(rng, mask, share) for _ in range(NUM_PROCESSES)), strict=True):
            vector.step(np.array(actions))
        # The step that follows an episode's end resets, whatever its action.
        vector.step(np.zeros(NUM_PROCESSES, np.int64))
    rate = NUM_PROCESSES * episodes * len(mask) / (time.perf_counter() - began_s)
    vector.close()
    return rate


def _head(models: str, cluster: str, episodes: int) -> tuple[str, ...]:
    command = f"python benchmarks/environment.py --models {models} --cluster {cluster} --episodes {episodes}"
    return (
        "# Steps a second of soaprl/Placement-v0",
        "",
        f"{platform.processor() or platform.machine()}; Python {platform.python_version()}, NumPy"
        f" {np.__version__}, Gymnasium {gymnasium.__version__}. Written by `{command}`, where the columns are"
        " explained.",
        "",
        f"| model | operators | policy | rewards | median us | median /s | mean us | mean /s |"
        f" {NUM_PROCESSES} apart /s | {NUM_PROCESSES} in step /s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )


if __name__ == "__main__":
    main()
