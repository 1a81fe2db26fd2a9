"""transformers' own DeepSeek-V3 with our configuration and weights: the reference that the decoder is compared with."""

from __future__ import annotations

import torch
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from model.config import TextConfig
from model.decoder import CausalLM
from model.hf import stacked_tensors
from model.moe import Router


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
    decoder = {name.removeprefix(prefix): value for name, value in released.items() if name.startswith(prefix)}
    peer.load_state_dict(stacked_tensors(decoder))
    same_latent_eps(peer, config)
    return peer.eval()


def same_latent_eps(peer: nn.Module, config: TextConfig) -> None:
    """transformers gives the two latent norms its default eps of 1e-6; serving engines and we read the config's."""
    for module in peer.modules():
        if isinstance(module, DeepseekV3RMSNorm):
            module.variance_epsilon = config.rms_norm_eps


@torch.no_grad()
def randomise(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Weights large enough that a wrong term cannot hide; norms near 1; router biases that change the choice."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else std * noise)


def random_decoder(config: TextConfig, seed: int = 0) -> CausalLM:
    decoder = CausalLM(config)
    randomise(decoder, seed, std=0.1)
    assert all(module.e_score_correction_bias.std() > 0 for module in decoder.modules() if isinstance(module, Router))
    return decoder.eval()
