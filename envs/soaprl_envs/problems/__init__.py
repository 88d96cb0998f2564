"""Problems for environments: described in plain data, built when asked for, in pools and suites."""

from soaprl_envs.problems.generators import FixedProblems, NamedProblems, ProblemGenerator
from soaprl_envs.problems.specs import ProblemSpec, build_problem
from soaprl_envs.problems.suites import load_suite, suite_names
from soaprl_envs.problems.toy import TwoTowers

__all__ = [
    "FixedProblems",
    "NamedProblems",
    "ProblemGenerator",
    "ProblemSpec",
    "TwoTowers",
    "build_problem",
    "load_suite",
    "suite_names",
]
