from soaprl.report.comparison import SPREAD_COLUMNS, Outcome, Spread, spread_rows, spreads


def outcome(time_s: float, *, method: str = "mcmc", fits: bool = True, memory: int = 10) -> Outcome:
    return Outcome(
        method=method,
        iteration_time_s=time_s,
        throughput_samples_per_s=1 / time_s,
        peak_memory_bytes=memory,
        communication_bytes=0,
        fits=fits,
        num_evaluations=7,
        search_time_s=1.0,
    )


def test_the_median_is_the_outcome_in_the_middle_and_of_two_the_worse() -> None:
    assert Spread(outcomes=(outcome(3.0), outcome(1.0), outcome(2.0))).median.iteration_time_s == 2.0
    assert Spread(outcomes=(outcome(3.0), outcome(1.0))).median.iteration_time_s == 3.0


def test_what_does_not_fit_is_worse_than_anything_that_does() -> None:
    found = Spread(
        outcomes=(outcome(1.0, fits=False, memory=30), outcome(5.0), outcome(2.0, fits=False, memory=20))
    )
    assert [o.iteration_time_s for o in found.ranked] == [5.0, 2.0, 1.0]
    assert not found.median.fits
    assert found.as_json() == {
        "method": "mcmc",
        "num_seeds": 3,
        "median_iteration_time_s": None,
        "best_iteration_time_s": 5.0,
        "worst_iteration_time_s": None,
    }


def test_rows_show_the_median_and_the_range_and_speed_up_over_the_first_method() -> None:
    found = spreads([outcome(4.0, method="data-parallel"), outcome(1.0), outcome(2.0), outcome(8.0)])
    first, second = (dict(zip(SPREAD_COLUMNS, row, strict=True)) for row in spread_rows(found))
    assert (first["method"], first["time"], first["range over seeds"], first["speed-up"]) == (
        "data-parallel",
        "4 s",
        "-",
        "1.00x",
    )
    assert (second["method"], second["time"], second["speed-up"]) == ("mcmc", "2 s", "2.00x")
    assert second["range over seeds"] == "1 s .. 8 s of 3"


def test_a_range_names_seeds_that_found_nothing_that_fits() -> None:
    found = spreads([outcome(1.0), outcome(2.0, fits=False)])
    assert spread_rows(found)[0][2] == "1 s .. does not fit of 2"
