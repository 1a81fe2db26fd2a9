"""Which sample comes when: mixture weights, the order within a family, the families' shares as training goes on, and
the planner that fills rows with whole samples. All of it follows from seed and step alone. Read ``mixtures`` first,
then ``planner``.
"""
