"""Clusters: devices, links, routes; by name, from files, and as arrays (`soaprl.cluster.tables`)."""

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link
from soaprl.cluster.files import cluster_from_dict, cluster_to_dict, load_cluster, save_cluster
from soaprl.cluster.presets import cluster_from_name, preset_kinds

__all__ = [
    "Cluster",
    "Device",
    "DeviceType",
    "Link",
    "cluster_from_dict",
    "cluster_from_name",
    "cluster_to_dict",
    "load_cluster",
    "preset_kinds",
    "save_cluster",
]
