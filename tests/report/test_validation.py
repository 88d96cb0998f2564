from dataclasses import replace
from math import exp, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.errors import SimulationError
from soaprl.report.validation import (
    COLUMNS,
    Point,
    agreement,
    at_best,
    kendall,
    markdown,
    method_rows,
    percentile,
    ranks,
    scatter,
    spearman,
)

VALUES = st.lists(st.integers(0, 8), min_size=2, max_size=12)


def point(predicted: float, *repeats: float, model: str = "net", found_by: str = "random") -> Point:
    return Point(model=model, found_by=found_by, predicted_s=predicted, repeats_s=repeats)


def test_ranks_of_equal_values_are_the_mean_of_theirs() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_correlations_are_those_of_worked_examples() -> None:
    # One exchange of neighbours among four: rho = 1 - 6 * 2 / (4 * 15) = 0.8; tau = (5 - 1) / 6.
    assert spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # With a tie: 2 pairs agree, of 3 and 2 untied ones.
    assert kendall([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / (3 * 2) ** 0.5)


@given(VALUES)
def test_an_order_agrees_with_itself_and_disagrees_with_its_reverse(values: list[int]) -> None:
    numbers = [float(v) for v in values]
    expected = 1.0 if len(set(values)) > 1 else 0.0
    for correlation in (spearman, kendall):
        assert correlation(numbers, numbers) == pytest.approx(expected)
        assert correlation(numbers, [-n for n in numbers]) == pytest.approx(-expected)
        # Only the order counts.
        assert correlation(numbers, [exp(n) for n in numbers]) == pytest.approx(expected)


def test_a_percentile_lies_between_its_neighbours() -> None:
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 0.9) == pytest.approx(3.6)
    assert percentile([5.0], 0.9) == 5.0


def test_agreement_has_errors_bias_and_what_the_choice_costs() -> None:
    # Errors: -10 %, +20 %, -50 %. The third is predicted to be fastest, and is 4 where 2 is possible.
    points = [point(1.8, 2.0), point(3.6, 3.0), point(1.0, 2.0, 4.0, 4.0)]
    found = agreement("net", points)
    assert found.num_strategies == 3
    assert found.median_error == pytest.approx(0.2)
    assert found.error_90 == pytest.approx(0.2 + 0.8 * (0.75 - 0.2))
    assert found.bias == pytest.approx(-0.1)
    assert found.regret == pytest.approx(4.0 / 2.0 - 1)
    assert "no, 100.0% slower" in found.row


def test_repeats_say_how_well_an_order_can_be_known() -> None:
    # Second and third change places from one repeat to the next: rho = 1 - 6 * 2 / (3 * 8) = 0.5.
    noisy = [point(1.0, 1.0, 1.0), point(2.0, 2.0, 3.0), point(3.0, 3.0, 2.0)]
    assert agreement("net", noisy).repeat_spearman == pytest.approx(0.5)
    # Both halves together have a reliability of 2 * 0.5 / 1.5, and agree with the truth with its root.
    assert agreement("net", noisy).best_spearman == pytest.approx(sqrt(2 / 3))
    once = agreement("net", [point(1.0, 1.0), point(2.0, 2.0)])
    assert (once.repeat_spearman, once.best_spearman) == (1.0, 1.0)
    assert at_best(-0.3) == 0.0


def test_methods_that_noise_does_not_tell_apart_are_marked() -> None:
    # Halves differ by 10 % (of their mean), so that 5 % more is nothing and 30 % more is slower.
    points = [
        point(1.0, 0.95, 1.05, found_by="mcmc"),
        point(1.0, 1.0, 1.1, found_by="optcnn"),
        point(1.0, 1.25, 1.35, found_by="data-parallel"),
        point(1.0, 9.0, 9.0),
    ]
    assert [row[-1] for row in method_rows(points)] == ["fastest", "+5.0%, within the noise", "+30.0%"]


def test_what_ranks_compute_is_compared_with_what_their_threads_ran() -> None:
    # Rank 0 is predicted 10 % too short, rank 1 computes nothing; the other strategy is right.
    first = Point(
        model="net",
        found_by="mcmc",
        predicted_s=1.0,
        repeats_s=(9.0,),
        predicted_busy_s=(0.9, 0.0),
        ran_s=(1.0, 0.1),
    )
    assert first.compute_errors == [pytest.approx(-0.1)]
    second = Point(
        model="net", found_by="a", predicted_s=1.0, repeats_s=(9.0,), predicted_busy_s=(2.0,), ran_s=(2.0,)
    )
    assert agreement("net", [first, second]).compute_error == pytest.approx(0.05)


def test_the_noise_floor_is_how_far_a_strategy_is_from_itself() -> None:
    # Runs 1 and 3 against 2 and 4: 1.0 and 1.1.
    noisy = agreement("net", [point(1.0, 1.0, 1.1, 1.0, 1.1)] * 2)
    assert noisy.noise == pytest.approx(0.1 / 1.05)
    assert agreement("net", [point(1.0, 1.0), point(2.0, 2.0)]).noise == 0.0


def test_stolen_time_is_the_mean_over_strategies() -> None:
    quiet, busy = replace(point(1.0, 1.0), stolen=0.02), replace(point(2.0, 2.0), stolen=0.1)
    found = agreement("net", [quiet, busy])
    assert found.stolen == pytest.approx(0.06)
    assert found.row[-1] == "6.0%"


def test_a_choice_within_the_noise_is_the_best() -> None:
    points = [point(1.0, 1.01, 0.99), point(1.1, 1.0, 0.97)]
    assert "yes" in agreement("net", points).row


def test_one_strategy_cannot_be_compared() -> None:
    with pytest.raises(SimulationError, match="at least two"):
        agreement("net", [point(1.0, 1.0)])


def test_the_table_has_every_strategy_and_the_plot_every_model() -> None:
    points = [point(1e-3, 2e-3, found_by="mcmc"), point(3e-3, 3e-3), point(1.0, 1.0, model="other")]
    found = agreement("net", points[:2])
    text = markdown("Title", ["Costs: measured."], [found], points)
    assert text.startswith("# Title\n\nCosts: measured.\n\n| model |")
    assert "| net | mcmc | 2 ms | 1 ms | -50.0% |" in text
    assert len(found.row) == len(COLUMNS)
    (axes,) = scatter("Title", points).axes
    legend = axes.get_legend()
    assert legend is not None
    assert [entry.get_text() for entry in legend.get_texts()] == ["net", "other", "equal"]
