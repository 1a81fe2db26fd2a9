"""A swarm over messages: any OpenAI-compatible endpoint speaks, and tools are Python functions and MCP servers. Turns
and critical steps are those of training (``model.swarm.turns``). Read ``orchestrator`` first.
"""
