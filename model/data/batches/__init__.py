"""Batches for training: samples are read from shards, packed into rows and handed over step by step, from any saved
position on. Read ``stream`` first, then ``packing``.
"""
