"""Reinforcement learning: prompts, episodes with tools, rewards, the objective and the trainer that joins them. Read
``trainer`` first, then ``environment``.
"""
