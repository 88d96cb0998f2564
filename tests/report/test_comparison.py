from soaprl.report.comparison import COLUMNS, Outcome, comparison_rows


def outcome(method: str, time_s: float, *, fits: bool = True) -> Outcome:
    return Outcome(
        method=method,
        iteration_time_s=time_s,
        throughput_samples_per_s=64 / time_s,
        peak_memory_bytes=3_000_000_000,
        communication_bytes=1_500_000,
        fits=fits,
        num_evaluations=7,
        search_time_s=0.5,
    )


def test_speed_ups_are_relative_to_the_first_outcome() -> None:
    rows = comparison_rows([outcome("data-parallel", 0.4), outcome("mcmc", 0.1)])
    # 0.4 / 0.1 = 4; 64 samples / 0.1 s = 640 samples/s
    assert rows[1] == ("mcmc", "100 ms", "4.00x", "640", "3 GB", "1.5 MB", "7", "500 ms")
    assert rows[0][2] == "1.00x"
    assert {len(row) for row in rows} == {len(COLUMNS)}


def test_a_strategy_that_does_not_fit_has_no_speed_up_and_is_no_reference() -> None:
    rows = comparison_rows([outcome("data-parallel", 0.4, fits=False), outcome("a", 0.2), outcome("b", 0.1)])
    assert [row[2] for row in rows] == ["-", "1.00x", "2.00x"]
    assert rows[0][4] == "3 GB (does not fit)"


def test_json_has_the_stable_keys() -> None:
    assert set(outcome("mcmc", 0.1).as_json()) == {
        "method",
        "iteration_time_s",
        "throughput_samples_per_s",
        "peak_memory_bytes",
        "communication_bytes",
        "fits",
        "num_evaluations",
        "search_time_s",
    }
