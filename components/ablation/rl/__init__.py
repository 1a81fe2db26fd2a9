"""The RL ablation: what RL on images does to vision and text, and what follows it (source: K2.5 paper, RL)."""

NAME = "rl"
