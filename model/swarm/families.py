"""The families whose tasks an orchestrator is trained on; imports nothing, as configurations read it."""

SWARM_FAMILIES = ("wide_search", "world_wide", "world_deep", "world_document", "world_bulk", "world_easy")
"""Tasks that a swarm can divide, and easy ones that it should not."""
