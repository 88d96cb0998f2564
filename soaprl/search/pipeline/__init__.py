"""Pipelines: contiguous stages on groups of devices, micro-batches, balanced by dynamic programming."""

from soaprl.search.pipeline.method import PIPELINE, Pipeline, pipelines, search_pipeline

__all__ = ["PIPELINE", "Pipeline", "pipelines", "search_pipeline"]
