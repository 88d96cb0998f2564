"""Cost: what a task takes (`CostModel`), and what a transfer takes (`soaprl.cost.transfers`, compiled)."""

from soaprl.cost.model import CostModel, Shard, TaskTime
from soaprl.cost.optimizers import OptimizerFacts, optimizer_facts, optimizer_names
from soaprl.cost.roofline import RooflineCostModel

__all__ = [
    "CostModel",
    "OptimizerFacts",
    "RooflineCostModel",
    "Shard",
    "TaskTime",
    "optimizer_facts",
    "optimizer_names",
]
