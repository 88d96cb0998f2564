"""Simulated against measured iterations on this machine, from nothing: links, times of tasks, runs.

    python benchmarks/validation.py --strategies 50 --repeats 3 --out out/validation
    sudo python benchmarks/validation.py --megabits 1000 --profile out/validation/profile.db --out out/1000

Measures the links of two gloo processes and the shards of four models (`validation_models.py`), by two
processes at once, because that is how they run. Then a few strategies are run to calibrate what the runtime
takes, and others, of several methods and random, to compare with what is predicted for them. Everything is
resumable: what is in the folder is not measured again.

With `--megabits` each process is on a host of its own, imitated as `hosts.py` does, with links so fast.

The machine must do nothing else meanwhile: iterations are timed by the clock. What ranks compute (the column
"compute error") is timed by what their threads ran, and is not so sensitive.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hosts import PORT, address_of, hosts, name_of

HERE = Path(__file__).parent
NUM_RANKS = 2
FACTORIES = {"convolutional": 16, "recurrent": 64, "transformer": 16, "dense": 128}
MODELS = tuple(f"{HERE / 'validation_models.py'}:{name}:{batch}" for name, batch in FACTORIES.items())
PREFIX = f"ip netns exec {name_of(0).removesuffix('0')}{{rank}}"


def run(*words: object, prefix: str = "", **environment: str) -> "subprocess.Popen[bytes]":
    """Starts `soaprl` with these words."""
    command = [*prefix.split(), sys.executable, "-m", "soaprl", *map(str, words)]
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command, env={"GLOO_SOCKET_IFNAME": "lo", **os.environ, **environment})


def finish(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Waits for all; one that fails ends the benchmark."""
    codes = [process.wait() for process in processes]
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
        more |= {"MASTER_PORT": str(PORT), "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
        ranks.append(run("profile", "--links", "--out", path, prefix=prefix, **more))
    finish(ranks)


def measure_tasks(profile: Path, cluster: Path) -> None:
    """Measures the shards of all models, by as many processes as there are ranks."""
    for model in MODELS:
        name, _, batch = model.rpartition(":")
        words = ("profile", name, "-b", batch, "-c", cluster, "--out", profile, "--show", 0)
        finish([run(*words, OMP_NUM_THREADS="1") for _ in range(NUM_RANKS)])


@contextmanager
def machines(megabits: float | None) -> Iterator[None]:
    """Hosts whose links are so fast; without a number, this machine as it is."""
    if megabits is None:
        yield
        return
    with hosts(NUM_RANKS, megabits):
        yield


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strategies", type=int, default=50)
    parser.add_argument(
        "--calibrate", type=int, default=8, help="strategies of each model for the calibration"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", default="data-parallel,model-parallel,single-device,optcnn,mcmc")
    parser.add_argument("--megabits", type=float, help="of each link and direction, a second; needs root")
    parser.add_argument("--profile", type=Path, help="a profile that there is already")
    parser.add_argument("--out", type=Path, default=Path("out/validation"))
    arguments = parser.parse_args()
    out, megabits = arguments.out, arguments.megabits
    out.mkdir(parents=True, exist_ok=True)
    links, calibrated = out / "links.yaml", out / "calibrated.yaml"
    profile = arguments.profile or out / "profile.db"
    slow = {} if megabits is None else {"GLOO_SOCKET_IFNAME": "wire"}
    common = ["--cost", profile, "--repeats", arguments.repeats, "--steps", arguments.steps]
    common += [] if megabits is None else ["--prefix", PREFIX, "--worst", 0]
    with machines(megabits):
        if not links.exists():
            measure_links(links, megabits)
        measure_tasks(profile, links)
        if not calibrated.exists():
            words = ["validate", *MODELS, "-c", links, *common, "--methods", "data-parallel,single-device"]
            words += ["--strategies", arguments.calibrate, "--seed", 1]
            words += ["--out", out / "calibration", "--calibrate", calibrated]
            finish([run(*words, **slow)])
        words = ["validate", *MODELS, "-c", calibrated, *common, "--methods", arguments.methods]
        words += ["--strategies", arguments.strategies, "--out", out / "validation", "--compare", links]
        finish([run(*words, **slow)])


if __name__ == "__main__":
    main()
