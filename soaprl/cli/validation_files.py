"""What `soaprl validate` writes and prints, and the calibrated cluster."""

import json
import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from soaprl.atomic import write_text_atomic
from soaprl.cli.output import print_json, print_table, say
from soaprl.cli.validating import Validation
from soaprl.cluster.files import load_cluster, save_cluster
from soaprl.report.units import format_seconds
from soaprl.report.validation import COLUMNS, markdown, scatter, write_plot

_MUCH_STOLEN = 0.03


def write_validation(validation: Validation) -> None:
    """Writes ``validation.json``, ``.md`` and ``.png`` into the plan's folder."""
    plan = validation.plan
    today = datetime.now(UTC).date().isoformat()
    title = f"Simulated and measured, {today}, {Path(plan.cluster).name}"
    lines = [
        f"Costs: {validation.cost_model}.",
        f"{plan.repeats} interleaved runs of {plan.num_steps} iterations each; seed {plan.seed}.",
    ]
    text = json.dumps(validation.as_json(), indent=2, allow_nan=False)
    write_text_atomic(plan.folder / "validation.json", f"{text}\n")
    table = markdown(
        title,
        lines,
        validation.agreements,
        validation.points,
        compared=validation.compared,
        compared_with=Path(plan.compared or "").name,
    )
    write_text_atomic(plan.folder / "validation.md", table)
    write_plot(scatter(title, validation.points), plan.folder / "validation.png")


def write_calibrated(validation: Validation) -> None:
    """Writes the cluster with what messages take of the runtime, if the plan says where; and says so."""
    plan = validation.plan
    if plan.calibrated is None:
        return
    from soaprl.runtime.measuring.calibration import fit_overheads

    fitted = fit_overheads(validation.loads)
    today, machine = datetime.now(UTC).date().isoformat(), platform.node()
    before = load_cluster(plan.cluster)
    provenance = (
        f"calibrated {today} on {machine} from {len(validation.points)} runs of {len(plan.models)} models"
    )
    cluster = replace(
        before, name=plan.calibrated.stem, overheads=fitted.entered(before.overheads, provenance)
    )
    save_cluster(cluster, plan.calibrated)
    say(
        f"soaprl: the runtime takes of a rank {format_seconds(fitted.iteration_s)} an iteration,"
        f" {format_seconds(fitted.task_s)} a pass of a task, {format_seconds(fitted.message_s)} a message,"
        f" {fitted.message_s_per_byte * 1e9:.3g} ns a byte and {fitted.reduced_s_per_byte * 1e9:.3g} ns more"
        " a byte of a sum: error of what ranks run"
        f" {fitted.error_before:.1%} without that, {fitted.error_after:.1%} with it; wrote {plan.calibrated}"
    )


def print_validation(validation: Validation, *, as_json: bool) -> None:
    """Prints the agreement for each model."""
    if as_json:
        print_json(validation.as_json())
        return
    rows = [found.row for found in validation.agreements]
    print_table(f"Simulated and measured on {validation.plan.cluster}", COLUMNS, rows)
    if max(found.stolen for found in validation.agreements) > _MUCH_STOLEN:
        say(
            "soaprl: the hypervisor took processor time from these runs (column stolen): what was measured is"
            " too long. Run the same in a new folder when other guests are quieter."
        )
    say(f"soaprl: wrote validation.md, validation.png and validation.json to {validation.plan.folder}")
