"""Generation: requests of token ids in, sampled token ids with their log-probs out. ``protocol`` is what callers see;
``embedded`` generates in this process and ``sglang`` through a server. Read ``protocol`` first.
"""
