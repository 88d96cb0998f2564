"""How gradients are compressed while they are summed over devices.

A compressed gradient has a fixed number of bits for each element; factors that scale a whole tensor are not
counted. A collective moves the compressed bytes: with quantized formats every device gets its piece from all
others, decodes and sums the pieces, and sends the encoded sum back to all, which moves as many bytes as an
all-reduce of that size (so do Alistarh et al.: QSGD, NeurIPS 2017; Wen et al.: TernGrad, NeurIPS 2017, with
whom sums are sent uncompressed where a server makes them).

Encoding s bytes into c reads s and writes c, decoding reads c and writes s; each device does both once for
each collective, at the bandwidth of its memory: (2 s + 2 c) / bandwidth. Implemented in `codec_time`.
"""

from dataclasses import dataclass

from soaprl.cluster.cluster import DeviceType
from soaprl.errors import find_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """One format of gradients on the wire.

    Attributes:
        name: As users write it; ``none`` leaves gradients as they are.
        bits: Bits of each element; None: as many as the element has.
    """

    name: str
    bits: int | None

    @property
    def active(self) -> bool:
        """Whether anything is compressed."""
        return self.bits is not None

    def bits_of(self, itemsize: int) -> int:
        """Bits on the wire of an element of `itemsize` bytes; compression never enlarges one."""
        return 8 * itemsize if self.bits is None else min(self.bits, 8 * itemsize)


_COMPRESSIONS = (
    Compression(name="none", bits=None),
    Compression(name="fp16", bits=16),
    Compression(name="bf16", bits=16),
    Compression(name="int8", bits=8),
    Compression(name="ternary", bits=2),
)


def compression_names() -> tuple[str, ...]:
    """Names that `find_compression` knows."""
    return tuple(compression.name for compression in _COMPRESSIONS)


def find_compression(name: str) -> Compression:
    """The compression called `name`.

    Raises:
        UnknownNameError: There is no such compression.
    """
    return find_named("gradient compression", name, _COMPRESSIONS)


def codec_time(num_bytes: int, sent_bytes: int, device_type: DeviceType) -> float:
    """Seconds for encoding `num_bytes` as `sent_bytes` and decoding as much; 0 if that is the same."""
    if sent_bytes == num_bytes:
        return 0.0
    rate = device_type.memory_bandwidth_bytes_per_s * device_type.memory_efficiency
    return 2 * (num_bytes + sent_bytes) / rate
