"""Capture of PyTorch models through `torch.export`; the only part of `soaprl.graph` that imports torch."""

from soaprl.graph.capture.export import Factory, capture
from soaprl.graph.capture.model import (
    UserFile,
    capture_model,
    graph_from_factory,
    graph_from_program,
    load_factory,
    parse_user_file,
)

__all__ = [
    "Factory",
    "UserFile",
    "capture",
    "capture_model",
    "graph_from_factory",
    "graph_from_program",
    "load_factory",
    "parse_user_file",
]
