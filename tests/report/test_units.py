import pytest

from soaprl.report.units import format_bytes, format_quantity, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5231, "1.52 s"),
        (0.0871, "87.1 ms"),
        (0.99996, "1 s"),
        (412e-6, "412 us"),
        (3e-9, "3 ns"),
        (0, "0 s"),
        (86400, "86400 s"),
        (0.99949, "999 ms"),
    ],
)
def test_seconds_have_three_digits_and_the_fitting_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12.1e9, "12.1 GB"),
        (999_960, "1 MB"),
        (4.2e15, "4200 TB"),
    ],
)
def test_bytes_count_in_powers_of_a_thousand(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_a_unit_may_be_absent() -> None:
    assert format_quantity(25_600_000) == "25.6 M"
    assert format_quantity(10.6e12, "FLOP/s") == "10.6 TFLOP/s"
    assert format_quantity(7) == "7"
