"""The arithmetic of a shape: parameters, floating-point operations, memory and traffic of a training step, and which
division among GPUs to take. Nothing is run. Read ``parameters`` first, then ``choice``.
"""
