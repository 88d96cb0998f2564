"""How good methods with a policy are: runs on problems that training has not seen, and their statistics."""

from soaprl_agents.evaluation.runs import EvaluationPlan, Record, run_plan
from soaprl_agents.evaluation.statistics import Summary, summarize

__all__ = ["EvaluationPlan", "Record", "Summary", "run_plan", "summarize"]
