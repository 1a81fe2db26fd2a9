"""``moonflow seeds``: one profile with several sets of seeds, and what that says about its scores (source: ours)."""
