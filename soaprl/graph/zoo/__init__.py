"""Models to try soaprl on: the paper's, and what people train today. Listing them does not import torch."""

from soaprl.graph.zoo.catalogue import Option, ZooModel
from soaprl.graph.zoo.registry import build, zoo_models

__all__ = ["Option", "ZooModel", "build", "zoo_models"]
