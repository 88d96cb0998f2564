"""Simulated against measured iterations on this machine, from nothing: links, times of tasks, runs.

    python benchmarks/validation.py --out out/validation
    sudo python benchmarks/validation.py --megabits 1000 --after out/validation --steps 2 --out out/1000

Measures the links of two gloo processes, then goes through all of the following in passes, as many as there
are repeats, because a machine's speed drifts: what is measured minutes before something else does not predict
it. A pass measures the shards of four models (`validation_models.py`) in a few more rounds, by two processes
at once, because that is how they run; of each shard the median of all rounds counts. It runs a few strategies
once more to calibrate anew what the runtime takes, and others, of several methods and random, to compare with
what is predicted for them from all that is measured by then. Searches find other strategies when predictions
change: those of the last pass count, which runs them as often as the others. Everything is resumable: what is
in the folder is not measured again, and passes that were compared are not gone through again.

With `--megabits` each process is on a host of its own, imitated as `hosts.py` does, with links so fast. With
`--after` times of tasks are those of a run without hosts, and passes are of runs alone. What the runtime
takes is calibrated over these links, as messages over them cost other things, or, with `--calibrate 0`, is
that of the run without hosts, too. Nothing is fitted to the time of any iteration.

The machine must do nothing else meanwhile: iterations are timed by the clock. What ranks compute (the column
"compute error") is timed by what their threads ran, and is not so sensitive.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hosts import MEGABIT_BYTES, PORT, address_of, hosts, name_of

from soaprl.atomic import write_text_atomic
from soaprl.cluster.files import load_cluster, save_cluster

HERE = Path(__file__).parent
NUM_RANKS = 2
FACTORIES = {"convolutional": 16, "recurrent": 64, "transformer": 16, "dense": 128}
MODELS = tuple(f"{HERE / 'validation_models.py'}:{name}:{batch}" for name, batch in FACTORIES.items())
# What hosts may send at once is what their links carry in this time, so many bytes at least.
BURST_S, BURST_BYTES = 0.32e-3, 2**13
PREFIX = f"ip netns exec {name_of(0).removesuffix('0')}{{rank}}"


def run(*words: object, prefix: str = "", **environment: str) -> "subprocess.Popen[bytes]":
    """Starts `soaprl` with these words."""
    command = [*prefix.split(), sys.executable, "-m", "soaprl", *map(str, words)]
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command, env={"GLOO_SOCKET_IFNAME": "lo", **os.environ, **environment})


def finish(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Waits for all; one that fails ends the benchmark, whose end is that of all."""
    try:
        codes = [process.wait() for process in processes]
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    if any(codes):
        raise SystemExit("a command failed")


def measure_links(path: Path, megabits: float | None) -> None:
    """Writes the cluster of the two processes."""
    ranks = []
    for rank in range(NUM_RANKS):
        prefix, more = "", {"MASTER_ADDR": "127.0.0.1"}
        if megabits is not None:
            prefix, more = PREFIX.format(rank=rank), {"MASTER_ADDR": address_of(0)}
            more["GLOO_SOCKET_IFNAME"] = "wire"
        # On a processor of its own, as ranks run.
        prefix += f" taskset -c {rank}" if shutil.which("taskset") else ""
        more |= {"MASTER_PORT": str(PORT), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
        ranks.append(run("profile", "--links", "--out", path, prefix=prefix, **more))
    finish(ranks)


def measure_tasks(profile: Path, cluster: Path, models: Sequence[str], rounds: Iterable[int]) -> None:
    """Measures the shards of all models in rounds of these numbers, by a process for each rank."""
    for number in rounds:
        for model in models:
            name, _, batch = model.rpartition(":")
            words = ("profile", name, "-b", batch, "-c", cluster, "--out", profile, "--show", 0)
            more = ("--rounds", number)
            finish([run(*words, *more, OMP_NUM_THREADS="1") for _ in range(NUM_RANKS)])


def with_overheads(calibrated: Path, links: Path, path: Path) -> None:
    """Writes the cluster `links` with what the runtime takes of another one's processors.

    What was measured with the links stays: what collectives take, and bytes on their way.
    """
    cluster, other = load_cluster(str(links)), load_cluster(str(calibrated)).overheads
    own = cluster.overheads
    overheads = replace(
        other,
        collective_s=own.collective_s,
        collective_s_per_byte=own.collective_s_per_byte,
        carry_s_per_byte=own.carry_s_per_byte,
    )
    save_cluster(replace(cluster, name=path.stem, overheads=overheads), path)


@contextmanager
def machines(megabits: float | None) -> Iterator[None]:
    """Hosts whose links are so fast; without a number, this machine as it is."""
    if megabits is None:
        yield
        return
    # Of single messages, which links are measured with, most would be within a larger burst; where timers are
    # late, links with a smaller one carry less than they should.
    with hosts(NUM_RANKS, megabits, max(BURST_BYTES, round(BURST_S * megabits * MEGABIT_BYTES))):
        yield


def keep_options(out: Path, arguments: argparse.Namespace) -> None:
    """Writes down what decides the passes; a folder that was begun otherwise ends the benchmark."""
    path, unlike = out / "options.json", {"repeats", "out"}
    text = json.dumps({key: str(value) for key, value in vars(arguments).items() if key not in unlike})
    begun = path.exists() or (out / "validation").exists()
    if begun and not (path.exists() and path.read_text(encoding="utf-8") == text):
        raise SystemExit(f"{out} was begun with other options than {text}: name another folder with --out")
    write_text_atomic(path, text)


def passes_done(path: Path, models: Sequence[str]) -> int:
    """How many repeats of these models' strategies were compared with predictions by an earlier call."""
    points = json.loads(path.read_text(encoding="utf-8"))["points"] if path.exists() else []
    if {point["model"] for point in points} != {Path(model).name.rpartition(":")[0] for model in models}:
        return 0
    return min((len(point["repeats_s"]) for point in points), default=0)


def compare(arguments: argparse.Namespace, models: Sequence[str], profile: Path, repeats: int) -> None:
    """Calibrates what the runtime takes, and runs and predicts other strategies; so often in all."""
    out, after = arguments.out, arguments.after
    links, calibrated = out / "links.yaml", out / "calibrated.yaml"
    slow = {} if arguments.megabits is None else {"GLOO_SOCKET_IFNAME": "wire"}
    common = ["--cost", profile, "--repeats", repeats, "--steps", arguments.steps]
    common += [] if arguments.megabits is None else ["--prefix", PREFIX]
    if arguments.calibrate == 0:
        with_overheads(after / "calibrated.yaml", links, calibrated)
    else:
        words = ["validate", *models, "-c", links, *common, "--methods", "data-parallel,single-device"]
        words += ["--strategies", arguments.calibrate or (5 if after else 8), "--seed", 1, "--worst", 0]
        words += ["--out", out / "calibration", "--calibrate", calibrated]
        finish([run(*words, **slow)])
    num_worst = 1 if arguments.megabits is None and repeats == arguments.repeats else 0
    words = ["validate", *models, "-c", calibrated, *common, "--methods", arguments.methods]
    words += ["--strategies", arguments.strategies, "--budget-evals", arguments.budget_evals]
    words += ["--out", out / "validation", "--compare", links, "--worst", num_worst]
    finish([run(*words, **slow)])


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strategies", type=int, default=50)
    parser.add_argument("--calibrate", type=int, help="strategies of each model (8; after a run 5)")
    parser.add_argument("--rounds", type=int, default=2, help="of measuring shards in each pass")
    parser.add_argument("--repeats", type=int, default=3, help="of each run: passes")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", default="data-parallel,model-parallel,single-device,optcnn,mcmc")
    parser.add_argument("--megabits", type=float, help="of each link and direction, a second; needs root")
    parser.add_argument("--models", default=",".join(FACTORIES), help="which of them, comma-separated")
    parser.add_argument("--budget-evals", type=int, default=20000, help="of each search")
    parser.add_argument("--after", type=Path, help="the folder of a run whose profile counts")
    parser.add_argument("--out", type=Path, default=Path("out/validation"))
    arguments = parser.parse_args()
    if arguments.calibrate == 0 and arguments.after is None:
        parser.error("--calibrate 0 takes the calibration of another run: name it with --after")
    out, repeats = arguments.out, arguments.repeats
    out.mkdir(parents=True, exist_ok=True)
    keep_options(out, arguments)
    links, profile = out / "links.yaml", (arguments.after or out) / "profile.db"
    models = [model for model in MODELS if model.split(":")[-2] in arguments.models.split(",")]
    done = passes_done(out / "validation" / "validation.json", models)
    with machines(arguments.megabits):
        if not links.exists():
            measure_links(links, arguments.megabits)
        if arguments.after is not None:
            measure_tasks(profile, links, models, [1])
        # The last pass is always gone through: it writes the tables, of fewer repeats than there are, too.
        for number in range(min(done, repeats - 1) + 1, repeats + 1):
            if arguments.after is None:
                last = number * arguments.rounds
                measure_tasks(profile, links, models, range(last - arguments.rounds + 1, last + 1))
            compare(arguments, models, profile, number)


if __name__ == "__main__":
    main()
