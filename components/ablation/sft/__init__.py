"""The SFT ablation: what text-only trajectories do for visual tool use (source: K2.5 section 2.2)."""

NAME = "sft"
