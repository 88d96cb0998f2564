"""Rules of operators: how the dimensions of a call's arguments and results belong together."""

from soaprl.graph.rules import (
    attention,
    convolution,
    dense,
    embedding,
    indexing,
    joining,
    losses,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reductions,
    views,
)
from soaprl.graph.rules.base import RuleTable

__all__ = ["default_rules"]


def default_rules() -> RuleTable:
    """A table of all rules that are known; add your own with its `register`."""
    table = RuleTable()
    for module in (
        attention,
        convolution,
        dense,
        embedding,
        indexing,
        joining,
        losses,
        normalization,
        pointwise,
        pooling,
        recurrent,
        reductions,
        views,
    ):
        module.register(table)
    return table
