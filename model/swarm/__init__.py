"""The agent swarm: a trained orchestrator creates frozen sub-agents and assigns tasks to them; its reward, and the
count of critical steps (source: K2.5, section on PARL). Read ``orchestrator`` first.
"""
