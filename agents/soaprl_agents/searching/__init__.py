"""Searches that a trained policy takes part in."""

from soaprl_agents.searching.finetune import search_finetune
from soaprl_agents.searching.guided import GuidedSettings, search_guided
from soaprl_agents.searching.samples import search_samples

__all__ = ["GuidedSettings", "search_finetune", "search_guided", "search_samples"]
