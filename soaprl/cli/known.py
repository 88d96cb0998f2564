"""The methods that the command line knows: of the search registry, and those with a trained policy."""

from pathlib import Path

from soaprl_agents.methods import learned_methods

from soaprl.search.method import Method
from soaprl.search.registry import find_method, methods


def known_methods(policy: Path | None = None) -> dict[str, Method]:
    """All methods by name; nothing of a policy is loaded before its method runs.

    Args:
        policy: Folder of the trained policy; None: the one that comes with soaprl.
    """
    return {**methods(), **learned_methods(policy)}


def known_method(name: str, policy: Path | None = None) -> Method:
    """The method called `name`; raises `UnknownNameError` with close names."""
    return find_method(name, known_methods(policy))
