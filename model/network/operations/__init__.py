"""The operations of the layers besides plain matrix products, each with two implementations.

``torch_ops`` runs on any device, ``cpu_ops`` are the kernels of ``model.network.kernels``; ``torch_grouped`` and
``cpu_grouped`` are the experts' products. ``choice`` decides.
"""
