"""What surrounds the matrix products on a CPU, each operation one pass over memory, compiled by Numba (source: ours).

``layers`` (a forward without gradients) and ``decoding`` (a decode step) compute half a decoder layer in one call, a
second statement of what ``model.network.layer`` says: a call of torch for every operator takes Python's lock so often
that threads wait for each other, and a decode step of a few rows would consist of calls. The products within kernels
are torch's own (``products``), except those of a few rows in ``decoding``. ``model.network.operations.choice`` says
when each kernel is used.

A kernel runs on the thread that calls it and lets others run meanwhile: to use several cores, give each some rows
(``model.network.row_threads``). Kernels take float32, float64 and bfloat16 (as its bits) and compute in float32, or in
float64 where that is what they are given. On an accelerator torch's own operators are used.
"""
