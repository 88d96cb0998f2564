"""What features this version computes: their widths, and a name that changes when they do."""

import hashlib

from soaprl_envs.context import CONTEXT_COLUMNS
from soaprl_envs.devices import DEVICE_COLUMNS, DEVICE_EDGE_COLUMNS
from soaprl_envs.features import CANDIDATE_COLUMNS, EDGE_COLUMNS, OPERATOR_COLUMNS

# To be raised when columns keep their names but not their meaning.
_MEANING = 1

_COLUMNS = {
    "operator_width": OPERATOR_COLUMNS,
    "edge_width": EDGE_COLUMNS,
    "device_width": DEVICE_COLUMNS,
    "device_edge_width": DEVICE_EDGE_COLUMNS,
    "candidate_width": CANDIDATE_COLUMNS,
    "context_width": CONTEXT_COLUMNS,
}

FEATURE_WIDTHS = {name: len(columns) for name, columns in _COLUMNS.items()}
FEATURE_VERSION = f"{_MEANING}-{hashlib.sha256(repr(_COLUMNS).encode()).hexdigest()[:12]}"
