"""What surrounds the matrix products on a CPU, each idea one pass over memory, compiled by Numba (source: ours).

``layers`` and ``decoding`` hold half a layer each, where a call of torch for every operator would take too long. The
products within kernels are torch's own (``products``), but for those of a few rows in ``decoding``.

A kernel runs on the thread that calls it and lets others run meanwhile: whoever wants several cores gives each some
rows (``model.train.shares``). Kernels take float32, float64 and bfloat16 (as its bits) and compute in float32, or in
float64 where that is what they are given. On an accelerator torch's own operators are used.
"""
