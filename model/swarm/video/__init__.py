"""A swarm that watches videos: each sub-agent sees the frames of one part, an orchestrator merges what they found
(source: K2.5 paper, the agent swarm that watches 24 hours of a game in 40 videos). Read ``analysis`` first.
"""
