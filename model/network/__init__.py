"""The network itself: config, vision tower, latent attention, mixture of experts, decoder; the precisions that it
runs in, its initial weights and its CPU kernels. ``multimodal`` puts the parts together: read it first, then
``decoder``.
"""
