"""The Toggle ablation: how many tokens RL under length budgets saves, at what price (source: K2.5 paper, Toggle)."""

NAME = "toggle"
