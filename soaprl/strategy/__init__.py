"""Configurations and strategies: legal ones, simple ones, their file format and their text."""

from soaprl.strategy.baselines import data_parallel, single_device, unsplit
from soaprl.strategy.candidates import (
    Candidates,
    DegreeLimits,
    DeviceGroup,
    candidate_configs,
    count_degrees,
    device_groups,
    legal_degrees,
)
from soaprl.strategy.files import StrategyRecord, load_strategy, operator_records, save_strategy
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from soaprl.strategy.text import export_dot, export_text, group_operators
from soaprl.strategy.validation import check_config, check_strategy

__all__ = [
    "Candidates",
    "DegreeLimits",
    "DeviceGroup",
    "OpConfig",
    "Schedule",
    "Sharding",
    "Strategy",
    "StrategyRecord",
    "candidate_configs",
    "check_config",
    "check_strategy",
    "count_degrees",
    "data_parallel",
    "device_groups",
    "export_dot",
    "export_text",
    "group_operators",
    "legal_degrees",
    "load_strategy",
    "operator_records",
    "save_strategy",
    "single_device",
    "unsplit",
]
