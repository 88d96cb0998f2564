"""Random numbers that depend on an element's global index and a seed, never on who computes it.

The bits are a 32-bit integer hash ("lowbias32": two multiplications between three xor-shifts, published by
C. Wellons in 2018) of the index, keyed by a hash of the seed. Implemented in `uniform`.
"""

import torch
from torch import Tensor

from soaprl.runtime.shards import LocalDim

_MASK = 0xFFFFFFFF


def mix(bits: Tensor) -> Tensor:
    """The hash of each 32-bit number in an int64 tensor."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D & _MASK
    bits = (bits ^ (bits >> 15)) * 0x846CA68B & _MASK
    return bits ^ (bits >> 16)


def global_index(dims: tuple[LocalDim, ...], device: torch.device) -> Tensor:
    """Row-major index in the whole tensor of each local element; shape: the local shape."""
    index = torch.zeros((), dtype=torch.int64, device=device)
    for dim in dims:
        index = index[..., None] * dim.extent + dim.indices().to(device)
    return index


def uniform(index: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each index, as float64, equal on every device."""
    key = mix(torch.tensor(seed & _MASK, device=index.device))
    low, high = index & _MASK, index >> 32
    return mix(mix(low ^ key) + mix(high ^ ~key & _MASK) & _MASK).double() / 2.0**32


def uniform_for(dims: tuple[LocalDim, ...], seed: int, device: torch.device) -> Tensor:
    """A number in [0, 1) for each local element of a tensor; shape: the local shape."""
    return uniform(global_index(dims, device), seed)


def keep_mask(dims: tuple[LocalDim, ...], p: float, seed: int, device: torch.device) -> Tensor:
    """True for each local element that dropout with probability `p` keeps."""
    return uniform_for(dims, seed, device) >= p
