from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from soaprl.errors import OutputError
from soaprl.report.anytime import MethodRuns, Run, anytime_curve, anytime_figure, write_figure


def run(*steps: tuple[int, float], num_evaluations: int = 100) -> Run:
    """A search with these (evaluation, best time) improvements, a second for each evaluation."""
    evaluations = np.array([at for at, _ in steps], np.int64)
    return Run(
        evaluations=evaluations,
        seconds=evaluations.astype(float),
        best_s=np.array([time_s for _, time_s in steps]),
        num_evaluations=num_evaluations,
        search_time_s=float(num_evaluations),
    )


def step(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([at for at, _ in points]), np.array([value for _, value in points])


def test_a_curve_is_the_median_and_the_range_of_its_seeds_at_every_change() -> None:
    curve = anytime_curve([step((1, 9.0), (5, 2.0)), step((1, 8.0), (3, 4.0)), step((2, 7.0), (4, 1.0))])
    assert curve.positions.tolist() == [1, 2, 3, 4, 5]
    # Seeds at 1: 9, 8, none; at 2: 9, 8, 7; at 3: 9, 4, 7; at 4: 9, 4, 1; at 5: 2, 4, 1.
    assert curve.median_s.tolist() == [9, 8, 7, 4, 2]
    assert curve.best_s.tolist() == [8, 7, 4, 1, 1]
    assert curve.worst_s.tolist() == [inf, 9, 9, 9, 4]


def test_the_median_of_two_seeds_is_the_worse_one() -> None:
    assert anytime_curve([step((1, 3.0)), step((1, 5.0))]).median_s.tolist() == [5.0]


def test_a_seed_that_found_nothing_counts_as_the_worst() -> None:
    curve = anytime_curve([step((1, 3.0)), step(), step((2, 4.0))])
    assert curve.median_s.tolist() == [inf, 4.0]


@given(st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6, unique=True), min_size=1, max_size=5))
def test_curves_never_rise_and_keep_their_order(positions: list[list[int]]) -> None:
    steps = [
        step(*((float(at), 100.0 / (at + k)) for at in sorted(found))) for k, found in enumerate(positions)
    ]
    curve = anytime_curve(steps)
    for values in (curve.best_s, curve.median_s, curve.worst_s):
        assert (values[1:] <= values[:-1]).all()
    assert (curve.best_s <= curve.median_s).all()
    assert (curve.median_s <= curve.worst_s).all()


def figure() -> Figure:
    methods = (
        MethodRuns(method="data-parallel", iterative=False, runs=(run((1, 0.4)),)),
        MethodRuns(method="mcmc", iterative=True, runs=(run((1, 0.4), (9, 0.1)), run((1, 0.4), (90, 0.2)))),
        MethodRuns(method="nothing that fits", iterative=True, runs=(run(),)),
    )
    return anytime_figure("a toy", methods)


def test_a_figure_shows_every_method_that_found_something_in_both_plots() -> None:
    drawn = figure()
    assert len(drawn.axes) == 2
    for axes in drawn.axes:
        assert axes.get_legend_handles_labels()[1] == ["data-parallel", "mcmc"]
        assert axes.get_xlabel()
    assert "2 seeds" in drawn.get_suptitle()


def test_all_curves_end_at_the_same_right_edge() -> None:
    for axes in figure().axes:
        ends = {line.get_xdata()[-1] for line in axes.lines if len(line.get_xdata()) > 1}
        # A little after the searches ended, though nothing improved after evaluation 90.
        assert [float(end) for end in ends] == [pytest.approx(120)]
        assert axes.get_xlim()[1] == pytest.approx(120)


def test_methods_that_tie_are_drawn_as_a_tie() -> None:
    tied = [MethodRuns(method=str(k), iterative=True, runs=(run((1, 0.511 + k * 1e-6)),)) for k in range(3)]
    low, high = anytime_figure("a tie", tied).axes[0].get_ylim()
    # 2 % above and below: the difference of a few millionths is not blown up to the whole height.
    assert high - low == pytest.approx(0.04 * 0.511, rel=1e-3)


def test_what_a_search_came_through_does_not_squeeze_what_it_found() -> None:
    wild = MethodRuns(method="wild", iterative=True, runs=(run((1, 500.0), (2, 1.1)),))
    calm = MethodRuns(method="calm", iterative=False, runs=(run((1, 1.0)),))
    assert anytime_figure("two", (wild, calm)).axes[0].get_ylim()[1] < 1.2


def test_a_figure_of_nothing_is_empty_and_is_written(tmp_path: Path) -> None:
    write_figure(anytime_figure("nothing", ()), tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_names_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"plot.{suffix}"
    write_figure(figure(), path)
    assert path.read_bytes().startswith(magic)


def test_an_unknown_suffix_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a plot's name to end in one of \.png, \.svg, \.pdf"):
        write_figure(figure(), tmp_path / "plot.jpeg2")
