"""Puts the tables of runs of `validation.py` into `validation.md`, below its text.

    python benchmarks/validation_tables.py "Links of the machine itself=out/validation" "1 Gbit/s=out/1000"

Each argument is a heading and the folder of a run. The text above the line `MARK` is written by hand, and
stays; so do the tables under other headings, until they are taken out by hand. The plot of a run that comes
first in the file goes beside it.
"""

import json
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from soaprl.atomic import write_text_atomic
from soaprl.report.validation import spearman

HERE = Path(__file__).parent
MARK = "<!-- Below this line: written by validation_tables.py -->"


COLUMNS = (
    "links",
    "strategies",
    "error, median",
    "90 %",
    "worst",
    "Spearman",
    "models with 0.9",
    "best found",
)


def summary(heading: str, run: dict[str, Any]) -> str:
    """The row of a run."""
    points, models = run["points"], run["models"]
    measured = [median(point["repeats_s"]) for point in points]
    predicted = [point["predicted_s"] for point in points]
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    ranked = sum(model["spearman"] >= 0.9 for model in models)
    best = sum(model["regret"] <= model["noise"] for model in models)
    return line_of(
        heading,
        str(len(points)),
        f"{median(errors):.1%}",
        f"{errors[int(0.9 * (len(errors) - 1))]:.1%}",
        f"{errors[-1]:.1%}",
        f"{spearman(predicted, measured):.3f}",
        f"{ranked} of {len(models)}",
        f"{best} of {len(models)}",
    )


def line_of(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def tables(heading: str, text: str) -> str:
    """The tables of one run: its `validation.md` without its first heading, and one level down."""
    _, _, body = text.partition("\n")
    return f"## {heading}\n{body.replace(chr(10) + '## ', chr(10) + '### ')}".rstrip() + "\n"


def known(text: str) -> dict[str, tuple[str, str]]:
    """For each heading of `text`, what is below the mark: the row of the summary, and the tables."""
    if not text.strip():
        return {}
    overview, *parts = text.split("\n## ")[1:]
    rows = {line[2:].partition(" | ")[0]: line for line in overview.splitlines() if line.startswith("| ")}
    headings = [part.partition("\n")[0] for part in parts]
    return {
        heading: (rows[heading], f"## {part}".rstrip() + "\n")
        for heading, part in zip(headings, parts, strict=True)
    }


def main() -> None:
    """Writes `validation.md`."""
    if len(sys.argv) == 1:
        raise SystemExit(__doc__)
    path = HERE / "validation.md"
    text, _, below = path.read_text().partition(MARK)
    found = known(below)
    for heading, _, folder in (argument.partition("=") for argument in sys.argv[1:]):
        run = Path(folder) / "validation"
        row = summary(heading, json.loads((run / "validation.json").read_text()))
        found[heading] = row, tables(heading, (run / "validation.md").read_text())
        if heading == next(iter(found)):
            shutil.copyfile(run / "validation.png", HERE / "validation.png")
    lines = [line_of(*COLUMNS), line_of(*["---"] * len(COLUMNS)), *(row for row, _ in found.values())]
    parts = ["## All runs", "\n".join(lines), *(part for _, part in found.values())]
    write_text_atomic(path, f"{text.rstrip()}\n\n{MARK}\n\n" + "\n\n".join(parts))


if __name__ == "__main__":
    main()
