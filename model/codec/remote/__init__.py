"""Code that every checkpoint carries, for programs that load it without moonflow; our own training reads media with it
too. Read ``processing_kimi_k25`` first.
"""
