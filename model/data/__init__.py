"""Training data, from a sample to a batch: ``samples`` (what a sample is), ``families`` (generators), ``user`` (a
user's own data), ``order`` (which sample comes when), ``batches`` (rows of tokens for a step). Read
``samples.sample`` first.
"""
