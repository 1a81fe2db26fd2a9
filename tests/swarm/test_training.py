"""What an orchestrator is trained on."""

from __future__ import annotations

from pathlib import Path

from model.codec.tools import SWARM_TOOLS
from model.data.families.world import Delegation, world_family
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import write_shard
from model.swarm.baselines import agent_tools
from model.swarm.training import swarm_prompts


def test_sub_agents_have_tools_for_every_prompt(tmp_path: Path) -> None:
    """Half of the cold start's orchestrators have none to give."""
    family = world_family("world_wide", [2], delegation=Delegation(0.05, True, bare=0.5))
    samples = [family.sample(0, "train", index) for index in range(24)]
    bare = {sample.key for sample in samples if set(sample.tools) <= set(SWARM_TOOLS)}
    (tmp_path / "wide.tar").write_bytes(write_shard(samples))
    index = {"families": {"world_wide": {"train": [{"shard": "wide.tar", "samples": len(samples)}]}}}
    prompts = swarm_prompts(LocalShards(tmp_path), index, ["world_wide"], 0)
    drawn = [prompts[n] for n in range(24)]
    assert bare and {sample.key for sample in drawn} == {sample.key for sample in samples} - bare
    assert all(agent_tools(sample, "single") for sample in drawn)
