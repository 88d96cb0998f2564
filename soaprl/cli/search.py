"""`soaprl search`: find a strategy."""

import typer

from soaprl.cli.arguments import (
    BatchSize,
    BudgetEvaluations,
    BudgetSeconds,
    Chains,
    ClusterName,
    ComputeDtype,
    Cost,
    GradientCompression,
    Json,
    MethodName,
    MicroBatches,
    Model,
    ModelOptions,
    NoCoarsen,
    Optimizer,
    OutFile,
    Paper,
    PolicyFolder,
    Seed,
    ShardingName,
    StartFile,
    State,
)
from soaprl.cli.output import INTERRUPTED, print_json, print_outcomes, say


def search(
    model: Model,
    cluster: ClusterName,
    method: MethodName = "mcmc",
    budget_evals: BudgetEvaluations = None,
    budget_seconds: BudgetSeconds = None,
    seed: Seed = 0,
    chains: Chains = 1,
    start: StartFile = None,
    policy: PolicyFolder = None,
    out: OutFile = None,
    resume: State = None,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = None,
    compression: GradientCompression = None,
    sharding: ShardingName = None,
    micro_batches: MicroBatches = 1,
    cost: Cost = None,
    paper: Paper = None,
    as_json: Json = False,
) -> None:
    """Find a strategy and set it beside data parallelism; --out keeps the search's state too, for --resume.

    Ctrl-C ends the search early: the best strategy so far is printed and written, and the exit code is 130.
    """
    from soaprl.cli.costs import cost_sources, print_sources, sources_json
    from soaprl.cli.inputs import Execution, ModelChoice, load_start, parse_options, prepare
    from soaprl.cli.known import known_method
    from soaprl.cli.records import make_record
    from soaprl.cli.searching import check_fits, make_budget, run_beside_baseline, search_outcome, state_file
    from soaprl.strategy.files import save_strategy

    options, budget = parse_options(option), make_budget(budget_evals, budget_seconds)
    chosen = known_method(method, policy)
    state_path = state_file(chosen, out, resume)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    execution = Execution(
        optimizer=optimizer, compute_dtype=compute_dtype, compression=compression, paper=paper, profiles=cost
    )
    prepared = prepare(choice, cluster, execution, sharding, micro_batches)
    result, baseline = run_beside_baseline(
        prepared,
        chosen,
        budget,
        seed=seed,
        state_path=state_path,
        resume=resume is not None,
        num_chains=chains,
        start=load_start(start, prepared.problem),
    )
    record = make_record(prepared, result, budget)
    outcomes = [search_outcome(found, record.batch_size) for found in (baseline, result)]
    check_fits(prepared, outcomes[1:])
    sources = cost_sources(prepared.problem, result.strategy)
    if out is not None:
        save_strategy(out, record)
        say(f"soaprl: wrote {out}" + (f"; its search can go on from {state_path}" if state_path else ""))
    if as_json:
        found = {"data_parallel": outcomes[0].as_json(), "strategy": record.model_dump(mode="json")}
        print_json({**prepared.as_json(), **outcomes[1].as_json(), **sources_json(sources), **found})
    else:
        print_outcomes(prepared.title, outcomes if method != baseline.method else outcomes[1:])
        print_sources(sources)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
