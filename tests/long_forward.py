"""A program that prints how many bytes a forward of so many tokens needs in addition to the model."""

from __future__ import annotations

LONG_FORWARD = r"""
import re, sys, torch
from model.network.config import preset
from model.network.batch import Batch
from model.network.initial import new_model

def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) << 10

model, tokens = new_model(preset("tiny"), seed=0).eval(), int(sys.argv[1])
ids = torch.randint(0, 768, (1, tokens))
where = torch.arange(tokens - 1)
halves = (torch.arange(tokens) >= tokens // 2).long()[None]
batch = Batch(ids, torch.arange(tokens)[None], halves, where, ids[0, 1:], where < 0, where * 0, None, [])
before = peak()
with torch.no_grad():
    model.logprobs(batch)
print(peak() - before)
"""
