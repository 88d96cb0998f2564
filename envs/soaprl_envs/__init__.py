"""Reinforcement-learning environments over the simulator."""
