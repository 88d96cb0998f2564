import gymnasium
import numpy as np
import pytest
from soaprl_envs.problems import TwoTowers
from soaprl_envs.rendering import timeline_text

from soaprl.errors import SimulationError
from soaprl.simulator import simulate


def best_towers(environment):
    """One tower on each device, the sum split."""
    environment.reset()
    found = environment.unwrapped.arena.choices
    devices = [(0,), (0,), (1,), (1,), (0, 1)]
    chosen = [
        next(c for c, config in enumerate(configs) if config.devices == wanted)
        for configs, wanted in zip(found.configs, devices, strict=True)
    ]
    environment.step(np.array(chosen))


def test_text_shows_who_computes_when():
    environment = gymnasium.make("soaprl/Strategy-v0", problems=TwoTowers(), render_mode="ansi").unwrapped
    best_towers(environment)
    problem = environment.arena.problem
    text = timeline_text(simulate(problem, environment.strategy), width=26)
    # 26 columns of 0.25 s: 2 s forward, 0.25 s and 0.25 s of transfers, 4 s backward.
    assert text.splitlines()[1:3] == [
        "d0    FFFFFFFF..BBBBBBBBBBBBBBBB  92 %",
        "d1    FFFFFFFF..BBBBBBBBBBBBBBBB  92 %",
    ]
    assert text.splitlines()[3] == "links ........##................"
    rendered = environment.render()
    assert rendered.splitlines()[0] == "two-towers: 10.31 times as quick as data-parallel"


def test_human_mode_prints(capsys):
    environment = gymnasium.make("soaprl/Strategy-v0", problems=TwoTowers(), render_mode="human").unwrapped
    best_towers(environment)
    assert "10.31 times as quick" in capsys.readouterr().out


def test_a_picture_shows_devices_and_links_in_colour(environment_name):
    environment = gymnasium.make(environment_name, problems=TwoTowers(), render_mode="rgb_array")
    environment.reset()
    picture = environment.unwrapped.render()
    assert picture.shape == (540, 960, 3)
    assert picture.dtype == np.uint8
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    # Forward blue, backward orange, sums of weight gradients purple: data parallelism has all three.
    assert {(0x44, 0x77, 0xAA), (0xEE, 0x99, 0x44), (0xAA, 0x33, 0x77)} <= colours


def test_without_a_mode_nothing_is_rendered_and_unknown_modes_are_refused():
    environment = gymnasium.make("soaprl/Placement-v0", problems=TwoTowers()).unwrapped
    environment.reset()
    assert environment.render() is None
    with pytest.raises(SimulationError, match="human, ansi, rgb_array"):
        type(environment)(TwoTowers(), render_mode="film")
