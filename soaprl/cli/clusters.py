"""`soaprl clusters`: the presets, or one cluster in detail."""

from collections import Counter
from typing import Annotated

import typer

from soaprl.cli.arguments import Json, OutFile
from soaprl.cli.output import print_json, print_table, say
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.devices import device_type
from soaprl.cluster.files import cluster_to_dict, load_cluster, save_cluster
from soaprl.cluster.presets import preset_kinds
from soaprl.errors import SoaprlError
from soaprl.report.units import format_bytes, format_quantity, format_seconds


def clusters(
    name: Annotated[
        str | None, typer.Argument(metavar="[CLUSTER]", help="Show this preset or YAML file in detail.")
    ] = None,
    out: OutFile = None,
    as_json: Json = False,
) -> None:
    """List the kinds of clusters, or show one (--out writes it as a YAML file to start from)."""
    if name is None:
        if out is not None:
            raise SoaprlError("--out needs the cluster to write: soaprl clusters p100-1x4 --out FILE.")
        _list_kinds(as_json)
        return
    cluster = load_cluster(name)
    if out is not None:
        save_cluster(cluster, out)
        say(f"soaprl: wrote {out}")
    if as_json:
        print_json({"fingerprint": cluster.fingerprint, **cluster_to_dict(cluster)})
    else:
        _show(cluster)


def _list_kinds(as_json: bool) -> None:
    kinds = preset_kinds()
    if as_json:
        fields = ("name", "description", "max_devices_per_node")
        print_json({"clusters": [{field: getattr(kind, field) for field in fields} for kind in kinds]})
        return
    rows = []
    for kind in kinds:
        facts = device_type(kind.name)
        peak, memory = dict(facts.peak_flops_per_s)["float32"], facts.memory_bytes
        example = f"{kind.name}-2x{min(4, kind.max_devices_per_node)}"
        rows.append(
            (kind.name, example, format_quantity(peak, "FLOP/s"), format_bytes(memory), kind.description)
        )
    columns = ("kind", "for example", "float32 peak", "memory", "description")
    print_table("Clusters: KIND-NODESxGPUS, or a YAML file", columns, rows)


def _show(cluster: Cluster) -> None:
    rows = [
        (kind.name, attribute, _value(getattr(kind, attribute)), where)
        for kind in cluster.device_types
        for attribute, where in kind.provenance
    ]
    nodes = "1 node" if cluster.num_nodes == 1 else f"{cluster.num_nodes} nodes"
    title = f"{cluster.name}: {cluster.num_devices} devices in {nodes}"
    print_table(title, ("device type", "number", "value", "where it comes from"), rows)
    wires = Counter((w.bandwidth_bytes_per_s, w.latency_s, w.provenance) for w in cluster.links)
    links = [
        (str(count), f"{format_bytes(bandwidth)}/s", format_seconds(latency), provenance)
        for (bandwidth, latency, provenance), count in wires.items()
    ]
    print_table("Links, one direction each", ("count", "bandwidth", "latency", "where it comes from"), links)


def _value(number: float | tuple[tuple[str, float], ...]) -> str:
    if isinstance(number, tuple):
        return ", ".join(f"{dtype} {format_quantity(peak)}" for dtype, peak in number)
    return format_quantity(number) if number >= 1 else f"{number:g}"
