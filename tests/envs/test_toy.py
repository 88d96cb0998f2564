from itertools import product

import numpy as np
import pytest
from soaprl_envs.choices import choices
from soaprl_envs.problems.toy import OPTIMUM_S, TwoTowers

from soaprl.simulator import Simulator


def test_the_best_of_all_strategies_is_what_the_docstring_says():
    found = choices(TwoTowers().problem(0))
    simulator = Simulator(found.problem)
    counts = [range(len(configs)) for configs in found.configs]
    times = {
        chosen: simulator.evaluate(found.strategy(np.array(chosen))).iteration_time_s
        for chosen in product(*counts)
    }
    assert len(times) == 3**5
    assert min(times.values()) == OPTIMUM_S == 6.5
    # Everything on one device: four layers of 3 s.
    alone = [
        next(c for c, config in enumerate(configs) if config.devices == (0,)) for configs in found.configs
    ]
    assert times[tuple(alone)] == 12
    # Data parallelism: the backward pass of the last layer ends at 3 s, then 4 sums of 16,384 bytes, of which
    # each link sends 2 x 1/2: 16 s each, and the start of a collective.
    assert times[0, 0, 0, 0, 0] == pytest.approx(3 + 4 * 16, abs=1e-4)
