"""SI quantities as people read them: three significant digits and a prefix (powers of 1000)."""

_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_LARGE = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def format_seconds(seconds: float) -> str:
    """For example ``1.52 s``, ``87.1 ms``, ``412 us``."""
    return _scaled(seconds, _SECONDS) if seconds > 0 else "0 s"


def format_bytes(num_bytes: float) -> str:
    """For example ``12.1 GB``."""
    return format_quantity(num_bytes, "B")


def format_quantity(value: float, unit: str = "") -> str:
    """A number with an SI prefix before `unit`: ``10.6 TFLOP/s``, ``25.6 M``, ``12 B``."""
    return f"{_scaled(value, _LARGE)}{unit}".strip()


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    # A value that rounds up to 1000 takes the larger unit, so "1 s" and never "1e+03 ms".
    for unit, scale in units:
        if value >= 0.9995 * scale:
            return f"{_digits(value / scale)} {unit}"
    unit, scale = units[-1]
    return f"{_digits(value / scale)} {unit}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"
