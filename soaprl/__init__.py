"""Finds how to split every operator of a PyTorch model over a cluster, and where to run it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
