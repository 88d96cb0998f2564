"""Reinforcement-learning environments over the simulator.

Importing this package registers `soaprl/Strategy-v0`, `soaprl/Placement-v0` and `soaprl/Refine-v0` with
Gymnasium:

    import gymnasium
    import soaprl_envs

    env = gymnasium.make("soaprl/Placement-v0", problems="training")

Each environment's class docstring is its specification; the problems come from `soaprl_envs.problems`.
"""

from gymnasium.envs.registration import register, registry

ENVIRONMENTS = {
    "soaprl/Strategy-v0": "soaprl_envs.whole:StrategyEnv",
    "soaprl/Placement-v0": "soaprl_envs.placement:PlacementEnv",
    "soaprl/Refine-v0": "soaprl_envs.refine:RefineEnv",
}

for _name, _entry_point in ENVIRONMENTS.items():
    if _name not in registry:
        register(id=_name, entry_point=_entry_point)

__all__ = ["ENVIRONMENTS"]
