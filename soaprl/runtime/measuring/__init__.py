"""Measuring this machine: what shards of operators take, links between processes, and the runtime itself."""

from soaprl.runtime.measuring.machine import Machine, choose_machine, device_name, setting_of, type_of_machine
from soaprl.runtime.measuring.measurer import ShardMeasurer

__all__ = ["Machine", "ShardMeasurer", "choose_machine", "device_name", "setting_of", "type_of_machine"]
