"""Puts the tables of runs of `validation.py` into `validation.md`, below its text.

    python benchmarks/validation_tables.py "Links of the machine itself=out/validation" "1 Gbit/s=out/1000"

Each argument is a heading and the folder of a run. The text above the line `MARK` is written by hand, and
stays; everything below it is written anew. The plot of the first run goes beside it.
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


def summary(runs: list[tuple[str, dict[str, Any]]]) -> str:
    """One row for each run."""
    columns = (
        "links",
        "strategies",
        "error, median",
        "90 %",
        "worst",
        "Spearman",
        "models with 0.9",
        "best found",
    )
    lines = [columns, ("---",) * len(columns)]
    for heading, run in runs:
        points, models = run["points"], run["models"]
        measured = [median(point["repeats_s"]) for point in points]
        predicted = [point["predicted_s"] for point in points]
        errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
        ranked = sum(model["spearman"] >= 0.9 for model in models)
        best = sum(model["regret"] <= model["noise"] for model in models)
        row = (
            heading,
            str(len(points)),
            f"{median(errors):.1%}",
            f"{errors[int(0.9 * (len(errors) - 1))]:.1%}",
            f"{errors[-1]:.1%}",
            f"{spearman(predicted, measured):.3f}",
            f"{ranked} of {len(models)}",
            f"{best} of {len(models)}",
        )
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(heading: str, text: str) -> str:
    """The tables of one run: its `validation.md` without its first heading, and one level down."""
    _, _, body = text.partition("\n")
    return f"## {heading}\n{body.replace(chr(10) + '## ', chr(10) + '### ')}".rstrip() + "\n"


def main() -> None:
    """Writes `validation.md`."""
    runs = [
        (heading, Path(folder) / "validation")
        for heading, _, folder in (a.partition("=") for a in sys.argv[1:])
    ]
    if not runs:
        raise SystemExit(__doc__)
    content = [(heading, json.loads((folder / "validation.json").read_text())) for heading, folder in runs]
    parts = ["## All runs", summary(content)]
    parts += [tables(heading, (folder / "validation.md").read_text()) for heading, folder in runs]
    path = HERE / "validation.md"
    text = path.read_text().partition(MARK)[0]
    write_text_atomic(path, f"{text.rstrip()}\n\n{MARK}\n\n" + "\n\n".join(parts))
    shutil.copyfile(runs[0][1] / "validation.png", HERE / "validation.png")


if __name__ == "__main__":
    main()
