"""A decoder layer (source: K2 Table 2; DeepSeek-V3).

Shapes: B rows, T tokens in a row, D hidden, r = rope dims / 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.network.attention import CachedLatents, MultiheadLatentAttention, Past
from model.network.config import TextConfig
from model.network.documents import Documents
from model.network.forward_context import PLAIN, ForwardContext
from model.network.moe import MixtureOfExperts, SwiGLU
from model.network.precision import RMSNorm, add_norm


class DecoderLayer(nn.Module):
    """Pre-norm attention and FFN, each with a residual.

    Training, a forward without gradients, prefill and decode are modes of ``forward``: they differ in what the tokens
    attend to (``seen``), and in whether their cache entries are kept (``kept``).
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = MultiheadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        dense = index < config.first_k_dense_replace or index % config.moe_layer_freq != 0
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(
        self,
        x_BTD: Tensor,
        cos_BTr: Tensor,
        sin_BTr: Tensor,
        seen: Documents | CachedLatents | Past,
        context: ForwardContext = PLAIN,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """The layer's hidden states [B, T, D], in the dtype of x.

        Args:
            cos_BTr, sin_BTr: of the tokens' positions (``model.network.attention.Rotary``).
            seen, kept: as in ``MultiheadLatentAttention.forward``.
        """
        normed_BTD = self.input_layernorm(x_BTD, context.products)
        attended_BTD = self.self_attn(normed_BTD, cos_BTr, sin_BTr, seen, context, kept)
        x_BTD, normed_BTD = add_norm(x_BTD, attended_BTD, self.post_attention_layernorm, context.products)
        return x_BTD + self.mlp(normed_BTD, context).to(x_BTD.dtype)
