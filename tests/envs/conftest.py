import pytest
import soaprl_envs  # registers the environments
from soaprl_envs.pool import ArenaPool
from soaprl_envs.problems import FixedProblems, NamedProblems, ProblemSpec
from soaprl_envs.spaces import limits_for

from tests.envs.problems import chain_problem, preset_problem


@pytest.fixture
def two_problems():
    return FixedProblems([preset_problem("p100-2x2"), chain_problem()])


@pytest.fixture(scope="session")
def synthetic_pool():
    """Three synthetic problems that can be built again, made ready once."""
    specs = [ProblemSpec(model=f"synthetic-{s}", cluster="p100-2x2", max_operators=12) for s in range(3)]
    generator = NamedProblems(specs)
    return ArenaPool(generator, limits_for([generator.problem(n) for n in range(3)]))


@pytest.fixture(params=list(soaprl_envs.ENVIRONMENTS))
def environment_name(request):
    return request.param
