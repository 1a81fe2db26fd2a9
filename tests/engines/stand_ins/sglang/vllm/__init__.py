"""The engine takes one kernel of its CPU path from vLLM, whose own package pins another torch: this holds that one."""
