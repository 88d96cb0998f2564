"""How good methods with a policy are: runs on problems that training has not seen, and their statistics."""

from soaprl_agents.evaluation.records import Record
from soaprl_agents.evaluation.runs import Entry, EvaluationPlan, PolicyLabel, run_plan
from soaprl_agents.evaluation.statistics import Summary, summarize

__all__ = ["Entry", "EvaluationPlan", "PolicyLabel", "Record", "Summary", "run_plan", "summarize"]
