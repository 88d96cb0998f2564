"""Peak memory of each device from the changes of live bytes that `soaprl.simulator.assemble` lists."""

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.simulator.state import Workspace


@inner_kernel
def peak_memory(work: Workspace, peaks: IntArray, live: IntArray, state_per_byte: int) -> int:
    """Fills the peak of each device; returns the largest.

    Args:
        work: With what is held and how live bytes change.
        peaks: Shape [devices]; filled.
        live: Shape [devices]; working memory.
        state_per_byte: Bytes of optimizer state for each byte of a trainable parameter.
    """
    num_steps, num_devices = work.memory_bytes.shape[1] - 1, work.memory_bytes.shape[2]
    live[:] = 0
    peaks[:] = 0
    for step in range(num_steps):
        for device in range(num_devices):
            live[device] += work.memory_bytes[0, step, device] + work.memory_bytes[1, step, device]
            peaks[device] = max(peaks[device], live[device])
    largest = 0
    for device in range(num_devices):
        held = work.held_bytes[0, device] + work.held_bytes[1, device]
        held += state_per_byte * work.held_bytes[2, device]
        peaks[device] += held
        largest = max(largest, peaks[device])
    return largest


def memory_breakdown(work: Workspace, state_per_byte: int) -> IntArray:
    """What the peak of each device consists of, shape [5, devices].

    Rows: parameters, gradients, optimizer state, activations, communication buffers; the last two at the
    first step at which the device's live bytes are largest.
    """
    live = np.cumsum(work.memory_bytes, axis=1)
    steps = live.sum(axis=0).argmax(axis=0)
    devices = np.arange(live.shape[2])
    parameters, gradients, trained = work.held_bytes
    return np.stack(
        [parameters, gradients, state_per_byte * trained, live[0, steps, devices], live[1, steps, devices]]
    ).astype(np.int64)
