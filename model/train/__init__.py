"""Supervised training: the loop, one step of it (the engine), and the guard against loss spikes. Saving while training
goes on is in ``model.checkpoint.saving``. Read ``loop`` first, then ``engine``.
"""
