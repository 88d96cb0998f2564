"""One simulated iteration for people: as lines of text, and as a picture."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from soaprl.cluster.tables import FloatArray
from soaprl.simulator import SimulationResult, TaskKind

_MAX_ROWS = 32
_MARKS = {TaskKind.FORWARD: "F", TaskKind.BACKWARD: "B", TaskKind.UPDATE: "u"}
_COLOURS = {
    TaskKind.FORWARD: "#4477aa",
    TaskKind.BACKWARD: "#ee9944",
    TaskKind.UPDATE: "#228833",
    TaskKind.TRANSFER: "#66ccee",
    TaskKind.GRADIENT: "#ccbb44",
    TaskKind.SYNCHRONIZATION: "#aa3377",
}
_LABELS = {
    TaskKind.FORWARD: "forward",
    TaskKind.BACKWARD: "backward",
    TaskKind.UPDATE: "update",
    TaskKind.TRANSFER: "activations",
    TaskKind.GRADIENT: "their gradients",
    TaskKind.SYNCHRONIZATION: "sums of weight gradients",
}


def timeline_text(result: SimulationResult, *, title: str = "", width: int = 80) -> str:
    """What each device does over time: ``F`` forward, ``B`` backward, ``u`` update, ``.`` nothing.

    Each column is an equal share of the iteration and shows what took most of it; below, ``#`` where some
    link is busy for most of a column, ``-`` where one is at all. Of many devices the first ones are shown.

    Args:
        result: The iteration.
        title: The first line.
        width: Number of columns.
    """
    cluster, total_s = result.problem.cluster, result.iteration_time_s
    shown = min(cluster.num_devices, _MAX_ROWS)
    label = max(len("links"), *(len(device.name) for device in cluster.devices[:shown]))
    lines = [title] if title else []
    lines.append(f"{'':{label}} 0 {'':-<{width - len(_seconds(total_s)) - 4}} {_seconds(total_s)}")
    for device in range(shown):
        shares = np.stack([_shares(result, kind, device, width) for kind in _MARKS])
        marks = np.array([*_MARKS.values()])[shares.argmax(axis=0)]
        marks[shares.sum(axis=0) < 0.5] = "."
        busy = result.device_busy_s[device] / total_s
        lines.append(f"{cluster.devices[device].name:{label}} {''.join(marks)} {100 * busy:3.0f} %")
    if shown < cluster.num_devices:
        lines.append(f"{'':{label}} ... and {cluster.num_devices - shown} more devices")
    busiest = _link_shares(result, width)
    links = np.where(busiest > 0.5, "#", np.where(busiest > 0, "-", "."))
    lines.append(f"{'links':{label}} {''.join(links)}")
    return "\n".join(lines)


def timeline_picture(
    result: SimulationResult, *, title: str = "", width: int = 960, height: int = 540
) -> NDArray[np.uint8]:
    """A picture of what devices and the busiest links do over time.

    Returns:
        Shape [height, width, 3].
    """
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    num_devices = min(result.problem.cluster.num_devices, _MAX_ROWS)
    links = np.argsort(-result.link_busy_s, kind="stable")[: max(4, num_devices // 2)]
    links = links[result.link_busy_s[links] > 0]
    axes = figure.add_axes((0.17, 0.12, 0.81, 0.74))
    scale, unit = (1e3, "ms") if result.iteration_time_s < 1 else (1.0, "s")
    tasks, used = result.tasks, result.occupations
    for kind in TaskKind:
        if kind not in _COLOURS:
            continue
        for row in range(num_devices):
            mine = (tasks.kind == kind) & (tasks.resource == row)
            spans = (tasks.start_s[mine], tasks.finish_s[mine] - tasks.start_s[mine])
            _bars(axes, spans, row, scale, _COLOURS[kind])
        for row, link in enumerate(links.tolist(), num_devices):
            mine = (used.link == link) & (tasks.kind[used.task] == kind)
            _bars(axes, (used.start_s[mine], used.busy_s[mine]), row, scale, _COLOURS[kind])
    names = [device.name for device in result.problem.cluster.devices[:num_devices]]
    names += [result.problem.cluster.links[link].name for link in links.tolist()]
    small = 7 if len(names) <= 24 else 4
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=small)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, scale * result.iteration_time_s)
    axes.set_xlabel(f"time, {unit}")
    axes.axhline(num_devices - 0.5, color="black", linewidth=0.5)
    figure.suptitle(title or result.problem.graph.name, fontsize=10, y=0.985)
    handles = [Patch(color=_COLOURS[kind], label=_LABELS[kind]) for kind in _COLOURS]
    figure.legend(
        handles=handles, loc="upper center", ncols=6, fontsize=7, frameon=False, bbox_to_anchor=(0.5, 0.95)
    )
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def _bars(axes: Axes, spans: tuple[FloatArray, FloatArray], row: int, scale: float, colour: str) -> None:
    if len(spans[0]):
        bars = np.stack([scale * spans[0], scale * spans[1]], axis=1)
        axes.broken_barh(bars.tolist(), (row - 0.4, 0.8), facecolors=colour, linewidth=0)


def _shares(result: SimulationResult, kind: TaskKind, device: int, width: int) -> FloatArray:
    """The share of each column in which a device does tasks of a kind."""
    tasks = result.tasks
    mine = (tasks.kind == kind) & (tasks.resource == device)
    return _covered(tasks.start_s[mine], tasks.finish_s[mine], result.iteration_time_s, width)


def _link_shares(result: SimulationResult, width: int) -> FloatArray:
    """The share of each column in which the busiest link is busy."""
    used = result.occupations
    busiest = np.zeros(width)
    for link in np.unique(used.link):
        mine = used.link == link
        start_s = used.start_s[mine]
        covered = _covered(start_s, start_s + used.busy_s[mine], result.iteration_time_s, width)
        busiest = np.maximum(busiest, covered)
    return busiest


def _covered(start_s: FloatArray, finish_s: FloatArray, total_s: float, width: int) -> FloatArray:
    """The share of each of `width` equal columns that intervals cover, which do not overlap."""
    edges = np.linspace(0.0, total_s, width + 1)
    before = np.zeros(width + 1)
    for first, last in zip(start_s, finish_s, strict=True):
        before += np.clip(edges - first, 0.0, last - first)
    return np.asarray(np.diff(before) * width / total_s)


def _seconds(time_s: float) -> str:
    return f"{1e3 * time_s:.4g} ms" if time_s < 1 else f"{time_s:.4g} s"


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"
