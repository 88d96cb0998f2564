"""Reinforcement-learning environments over the simulator; empty in this release."""
