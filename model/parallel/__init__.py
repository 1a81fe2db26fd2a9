"""One training step on several ranks: ZeRO, expert parallel and sequence parallel, the encoder decoupled from the
decoder, and threads that share rows on one CPU. ``layout`` says what is divided and ``ranks`` who takes part: read
these two first.
"""
