"""`soaprl evaluate`: how good a policy is on problems that it has not been trained on."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json
from soaprl.cli.output import INTERRUPTED, print_json, print_table, progress_bar, say

DEFAULT_METHODS = "data-parallel,random,coordinate-descent,annealing,mcmc,policy,guided"


def evaluate(
    policy: Annotated[
        list[Path] | None,
        typer.Option(
            "--policy",
            metavar="DIR",
            help="Folder of a trained policy; repeat it for policies of several training seeds, whose runs"
            " are judged together. Default: the one shipped.",
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option("--suite", help="Problems: held-out, held-out-families, validation, or a YAML file."),
    ] = "held-out",
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated names (see: soaprl methods).")
    ] = DEFAULT_METHODS,
    budgets: Annotated[
        str, typer.Option("--budgets", help="Comma-separated numbers of evaluations.")
    ] = "1,16,64,256,1000",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of each method that searches.")] = 3,
    only: Annotated[
        str, typer.Option("--only", help="Comma-separated beginnings of problem names; default: all.")
    ] = "",
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            help="Processes that run searches. Results are the same with any number, but for seconds, which"
            " are longer where cores are shared.",
        ),
    ] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for runs, table and plots.")] = Path(
        "out/evaluation"
    ),
    as_json: Json = False,
) -> None:
    """Run methods with and without a policy on a suite, and write table, plots and every run.

    It can be ended at any time; the same command goes on.
    """
    from soaprl_agents.evaluation.command import evaluation_plan
    from soaprl_agents.evaluation.report import columns, headline, table, write_report
    from soaprl_agents.evaluation.runs import run_plan
    from soaprl_agents.evaluation.statistics import summarize

    from soaprl.cli.comparing import chosen_methods

    plan = evaluation_plan(
        policies=policy or (),
        suite=suite,
        only=tuple(word for word in only.split(",") if word),
        methods=chosen_methods(methods),
        budgets=budgets,
        num_seeds=seeds,
        folder=out / "runs",
    )
    with progress_bar() as display:
        bar = display.add_task("evaluation", total=1.0, status="")

        def listen(done: int, of: int, status: str) -> None:
            display.update(bar, completed=done / of, status=status)

        try:
            records = list(run_plan(plan, listen, workers=workers))
        except KeyboardInterrupt:
            say("soaprl: the same command goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    summary = summarize(plan, records)
    write_report(out, suite, summary)
    say(f"soaprl: wrote {out}/summary.md, summary.json, anytime.png and profiles.png")
    if as_json:
        print_json(summary.as_json())
    else:
        print_table(headline(suite, summary), columns(summary), table(summary))
