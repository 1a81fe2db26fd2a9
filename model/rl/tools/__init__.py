"""The tools of an episode: Python in a sandbox, and search. ``toolset`` is what an episode calls; ``sandbox`` starts
the process that runs the policy's programs, and ``isolation`` keeps it away from everything else. Read ``toolset``
first.
"""
