"""Measuring a model: suites of held-out tasks, the scorer that runs them, and likelihood of held-out text. Read
``suites`` first, then ``scorer``.
"""
