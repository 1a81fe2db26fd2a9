"""transformers' own DeepSeek-V3 with our configuration and weights: the reference that the decoder is compared with."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from model.checkpoint.tensor_names import released_views
from model.network.config import TextConfig


def peer_config(config: TextConfig, attention: str = "eager") -> DeepseekV3Config:
    fields = config.model_dump(exclude={"architectures", "model_type", "rope_scaling", "rope_theta"})
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= config.rope_scaling.model_dump(exclude={"type"}) | {"rope_type": "yarn"}
    peer = DeepseekV3Config(**fields, rope_parameters=rope)
    peer._attn_implementation = attention
    return peer


def peer_language_model(config: TextConfig, released: dict[str, torch.Tensor], attention: str = "eager") -> nn.Module:
    """``DeepseekV3ForCausalLM`` holding the released tensors of the decoder, in evaluation mode."""
    peer = DeepseekV3ForCausalLM._from_config(peer_config(config), attn_implementation=attention)
    prefix = "language_model."
    views = dict(released_views(peer.state_dict()))  # it stacks its experts as we do
    assert {prefix + name for name in views} == {name for name in released if name.startswith(prefix)}
    for name, weight in views.items():
        weight.copy_(released[prefix + name])
    same_latent_eps(peer, config)
    return peer.eval()


def same_latent_eps(peer: nn.Module, config: TextConfig) -> None:
    """transformers gives the two latent norms its default eps of 1e-6; serving engines and we read the config's."""
    for module in peer.modules():
        if isinstance(module, DeepseekV3RMSNorm):
            module.variance_epsilon = config.rms_norm_eps
