"""The sections of a cluster file, and one clear message for what is wrong in one.

A file has either `nodes` (and `network`): groups of equal nodes with a topology by name; or `devices` and
`links`: everything one by one, which is what `save_cluster` writes. All numbers are SI.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from soaprl.cluster.cluster import COLLECTIVE_BASE_S
from soaprl.errors import ClusterError


def _whole_number(value: object) -> object:
    """YAML reads ``16e9`` as text and ``16.0e+9`` as a float: both are whole numbers to people."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1), BeforeValidator(_whole_number)]
Index: TypeAlias = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the file in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_keys(cls, data: object) -> object:
        if isinstance(data, Mapping):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                    hint = f" Did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"unknown key {key!r}.{hint} Known: {', '.join(known)}")
        return data


class TypeSection(Section):
    """A device type of one's own; see `soaprl.cluster.cluster.DeviceType`."""

    name: str
    peak_flops_per_s: dict[str, Positive]
    memory_bytes: Count
    memory_bandwidth_bytes_per_s: Positive
    kernel_launch_s: NotNegative
    matmul_efficiency: Share
    memory_efficiency: Share
    provenance: dict[str, str] = {}


class WireSection(Section):
    """Bandwidth and latency of one link in one direction."""

    bandwidth_bytes_per_s: Positive
    latency_s: NotNegative
    provenance: str = ""


class SwitchSection(WireSection):
    """All devices of the node on one switch; the numbers are those of a port."""

    kind: Literal["switch"]


class PairsSection(WireSection):
    """A link of its own for each ordered pair of the node's devices."""

    kind: Literal["pairs"]


class TreeSection(WireSection):
    """PCIe switches with a few devices each, joined by the node's host over uplinks."""

    kind: Literal["pcie_tree"]
    uplink_bandwidth_bytes_per_s: Positive
    uplink_latency_s: NotNegative
    devices_per_switch: Count = 2


class LinkSection(WireSection):
    """One link, or one in each direction; without ends it serves only in listed routes."""

    name: str = ""
    source: str = Field(default="", alias="from")
    target: str = Field(default="", alias="to")
    both_ways: bool = False

    @model_validator(mode="after")
    def _has_ends_or_name(self) -> "LinkSection":
        if bool(self.source) != bool(self.target) or not (self.source or self.name):
            raise ValueError("a link needs both 'from' and 'to' (or, for listed routes alone, a 'name')")
        if self.both_ways and not self.source:
            raise ValueError("'both_ways' needs 'from' and 'to'")
        return self


class LinksSection(Section):
    """The node's links one by one, between ``gpu0``, ``gpu1``, ... and the named switches."""

    kind: Literal["links"]
    switches: list[str] = []
    links: list[LinkSection]


TopologySection: TypeAlias = Annotated[
    SwitchSection | PairsSection | TreeSection | LinksSection, Field(discriminator="kind")
]


class NetworkSection(WireSection):
    """How nodes reach the non-blocking fabric: a NIC for each device, or one for the node on its host.

    With one for the node, devices reach the host at `device_bandwidth_bytes_per_s` and without latency, or
    through the PCIe tree where there is one.
    """

    per: Literal["device", "node"]
    device_bandwidth_bytes_per_s: Positive | None = None


class NodesSection(Section):
    """Equal nodes: how many, how many devices of which type, how they are linked."""

    count: Count = 1
    devices: Annotated[dict[str, Count], Field(min_length=1)]
    topology: TopologySection | None = None
    network: NetworkSection | None = None


class DeviceSection(Section):
    """One device."""

    name: str
    type: str
    node: Index


class RouteSection(Section):
    """A route that is not the one a search finds; indices into the file's links."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    links: Annotated[list[Index], Field(min_length=1)]


class OverheadsSection(Section):
    """What software takes; see `soaprl.cluster.cluster.Overheads`."""

    task_s: NotNegative = 0.0
    iteration_s: NotNegative = 0.0
    message_s: NotNegative = 0.0
    message_s_per_byte: NotNegative = 0.0
    collective_s: NotNegative = COLLECTIVE_BASE_S
    collective_s_per_byte: NotNegative = 0.0
    carry_s_per_byte: NotNegative = 0.0
    reduced_s_per_byte: NotNegative = 0.0
    provenance: str = ""


class FileSection(Section):
    """The whole file."""

    format: Literal["soaprl-cluster"] = "soaprl-cluster"
    version: Literal[1] = 1
    name: str
    device_types: list[TypeSection] = []
    nodes: list[NodesSection] | None = None
    network: NetworkSection | None = None
    devices: list[DeviceSection] | None = None
    switches: list[str] = []
    links: list[LinkSection] = []
    routes: list[RouteSection] = []
    overheads: OverheadsSection = OverheadsSection()

    @model_validator(mode="after")
    def _one_form(self) -> "FileSection":
        if (self.nodes is None) == (self.devices is None):
            raise ValueError("expected either 'nodes' (with 'network') or 'devices' (with 'links')")
        if self.nodes is not None and (self.links or self.routes or self.switches):
            raise ValueError("'links', 'routes' and 'switches' belong to 'devices'; a node has a 'topology'")
        if self.devices is not None and self.network is not None:
            raise ValueError("'network' belongs to 'nodes'; beside 'devices' every wire is in 'links'")
        return self


def parse_file(data: object, where: str) -> FileSection:
    """The sections in `data`, which came from `where` (for messages).

    Raises:
        ClusterError: With the first thing that is wrong: key, what was expected, what was found.
    """
    if not isinstance(data, Mapping):
        raise ClusterError(f"{where}: expected keys and values of a cluster, found {type(data).__name__}.")
    try:
        return FileSection.model_validate(data)
    except ValidationError as error:
        raise ClusterError(_message(error, data, where)) from error


def _message(error: ValidationError, data: object, where: str) -> str:
    first = error.errors(include_url=False)[0]
    key = _key(first["loc"], data, missing=first["type"] == "missing")
    more = f" ({error.error_count() - 1} more in this file.)" if error.error_count() > 1 else ""
    return f"{where}: {f'{key}: ' if key else ''}{_complaint(first)}.{more}"


def _complaint(error: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "missing":
        return "expected this key, found none"
    if error["type"] == "value_error":
        return str(context["error"])
    if error["type"] == "union_tag_invalid":
        return f"expected a kind of {context['expected_tags']}, found {context['tag']!r}"
    if error["type"] == "union_tag_not_found":
        return "expected a key 'kind', found none"
    expected = error["msg"].removeprefix("Input should be ")
    return f"expected {expected}, found {error['input']!r}"


def _key(location: tuple[int | str, ...], data: object, *, missing: bool) -> str:
    """The place in the file; pydantic's own path also names the kind of a union."""
    key = ""
    for number, step in enumerate(location, start=1):
        if isinstance(data, Mapping) and (step in data or (missing and number == len(location))):
            key, data = (f"{key}.{step}" if key else str(step)), data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            key, data = f"{key}[{step}]", data[step]
    return key
