"""The swarm ablation: what PARL makes of a swarm in the offline world (source: K2.5 section on Agent Swarm)."""

NAME = "swarm"
