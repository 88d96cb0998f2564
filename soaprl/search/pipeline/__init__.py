"""Pipelines: contiguous stages on groups of devices, micro-batches, balanced by dynamic programming."""

from soaprl.search.pipeline.making import Pipeline, best_first, estimated_pipelines, pipelines
from soaprl.search.pipeline.method import (
    ACCUMULATION,
    PIPELINE,
    search_accumulation,
    search_pipeline,
)

__all__ = [
    "ACCUMULATION",
    "PIPELINE",
    "Pipeline",
    "best_first",
    "estimated_pipelines",
    "pipelines",
    "search_accumulation",
    "search_pipeline",
]
