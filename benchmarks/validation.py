"""Simulated against measured iterations on this machine, from nothing: links, times of tasks, runs.

    python benchmarks/validation.py --strategies 50 --repeats 5 --out out/validation

Measures the links of two gloo processes and the shards of four small models (convolutional, recurrent,
transformer, wide and dense), runs strategies of several methods and random ones, interleaved, calibrates what
messages take, and predicts the same runs again with the calibrated cluster. Everything is resumable: what is
in the folder is not measured again. The machine must do nothing else meanwhile: iterations are timed by the
clock. What ranks compute (the column "compute error") is timed by what their threads ran, and is not so
sensitive.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from soaprl.graph.zoo import zoo_models

HERE = Path(__file__).parent
MODELS = ("lenet:128", "rnnlm:16", "gpt2:8", f"{HERE / 'validation_models.py'}:wide:128")
# Sizes that run in tens of milliseconds; each model takes the options that it has.
OPTIONS = (
    *("num_layers=2", "width=128", "num_heads=4", "vocabulary=1000", "sequence=64", "dropout=0"),
    *("hidden=256", "steps=8", "chunk=2"),
)


def run(*words: object, processes: int = 0) -> None:
    """Runs `soaprl` with these words, under torchrun if it takes several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes else ()), "-m", "soaprl", *map(str, words)]
    print("$", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, env={"GLOO_SOCKET_IFNAME": "lo", **os.environ})


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strategies", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--methods", default="data-parallel,model-parallel,single-device,optcnn,mcmc")
    parser.add_argument("--out", type=Path, default=Path("out/validation"))
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    links, profile, calibrated = out / "links.yaml", out / "profile.db", out / "calibrated.yaml"
    if not links.exists():
        run("profile", "--links", "--out", links, processes=2)
    for model in MODELS:
        name, _, batch = model.rpartition(":")
        run("profile", name, "-b", batch, "-c", links, "--out", profile, "--show", 0, *_own_options(name))
    words = [word for option in OPTIONS for word in ("--option", option)]
    for cluster, folder, more in (
        (links, "before", ("--calibrate", calibrated)),
        (calibrated, "after", ()),
    ):
        run(
            *("validate", *MODELS, "-c", cluster, "--cost", profile, "--methods", arguments.methods),
            *("--strategies", arguments.strategies, "--repeats", arguments.repeats),
            *("--steps", arguments.steps, "--out", out / folder, *more, *words),
        )


def _own_options(name: str) -> list[str]:
    """The options that the model has, as words."""
    known = zoo_models()[name].options if name in zoo_models() else {}
    own = [option for option in OPTIONS if option.partition("=")[0] in known]
    return [word for option in own for word in ("--option", option)]


if __name__ == "__main__":
    main()
