"""Tasks of a user's own package, for RL and evaluation: ``README.md`` writes one. Read ``task`` first, then
``own_tasks``, ``process`` and ``worker``.
"""
