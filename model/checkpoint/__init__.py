"""Models and training states in files: ``export`` writes the released format and ``load`` reads it, ``tensor_names``
says what a tensor is called there; ``importing`` reads what others wrote; ``folder`` adds what training needs to go on,
with the optimizer's state in ``slices``. Read ``load`` first.
"""
