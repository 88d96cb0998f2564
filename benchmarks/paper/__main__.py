"""Writes the paper's tables from our simulator.

python -m benchmarks.paper                all of them
python -m benchmarks.paper nmt local      some of them
"""

import argparse
import time

from rich.console import Console

from benchmarks.paper import local, nmt, optimality, restricted, throughput
from benchmarks.paper.cases import HERE

_TABLES = {
    "nmt": nmt.main,
    "restricted": restricted.main,
    "throughput": throughput.main,
    "local": local.main,
    "optimality": optimality.main,
}


def main() -> None:
    """Writes the tables that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description="Write the paper's tables.")
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(_TABLES)}; default all")
    names = parser.parse_args().tables or list(_TABLES)
    if unknown := sorted(set(names) - set(_TABLES)):
        parser.error(f"expected some of {', '.join(_TABLES)}, found {', '.join(unknown)}.")
    console = Console(stderr=True)
    for name in names:
        begun_s = time.perf_counter()
        with console.status(f"{name} ..."):
            _TABLES[name]()
        console.print(f"{HERE / name}.md: {time.perf_counter() - begun_s:,.0f} s", highlight=False)


if __name__ == "__main__":
    main()
