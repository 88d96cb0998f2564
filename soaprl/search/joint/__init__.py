"""Joint search of configurations, sharding, and micro-batches with their stages."""

from soaprl.search.joint.method import JointSettings, joint

__all__ = ["JointSettings", "joint"]
