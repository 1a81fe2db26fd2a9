"""The language model: DeepSeek-V3 decoder layers, first dense, then mixture of experts (source: K2 Table 2).

Shapes: L layers, B rows, T tokens in a row, P earlier tokens of the row, D hidden, R = rope dims, r = R / 2, W = kv
latent + R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from model.network.attention import CachedLatents, Past, Rotary
from model.network.config import TextConfig
from model.network.documents import Documents
from model.network.forward_context import PLAIN, ForwardContext
from model.network.kernel_forward import forward_by_kernels
from model.network.layer import DecoderLayer
from model.network.operations.choice import forwards_by_kernels
from model.network.precision import RMSNorm


class Decoder(nn.Module):
    """From embeddings to normalised hidden states, both [B, T, D]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = Rotary(config)

    def forward(
        self, x_BTD: Tensor, position_ids_BT: Tensor, documents: Documents, context: ForwardContext = PLAIN
    ) -> Tensor:
        """Normalised hidden states [B, T, D].

        Where ranks share the rows, x and the result are this rank's columns; positions and documents are those of whole
        rows.

        Raises:
            ValueError: positions and documents have different shapes.
        """
        if position_ids_BT.shape != (documents.rows, documents.tokens):
            rows = f"{documents.rows} rows of {documents.tokens} tokens"
            raise ValueError(f"positions are {list(position_ids_BT.shape)}, but documents have {rows}")
        cos_BTr, sin_BTr = self.rotary(position_ids_BT)
        if forwards_by_kernels(self, x_BTD, documents, context):
            layers = list(self.each_layer())
            return forward_by_kernels(layers, self.norm, x_BTD, cos_BTr, sin_BTr, documents, context)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_BTr, sin_BTr, documents, context)
        return self.norm(x_BTD, context.products)

    def prefill(
        self,
        x_BTD: Tensor,
        lengths: Sequence[int],
        context: ForwardContext = PLAIN,
        past_LBPW: Tensor | None = None,
        starts: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Run new tokens, ``lengths`` of them per row, padded on the right: no token attends to the padding after it.

        Args:
            past_LBPW: the cache entries of the tokens before them, padded on the right; None: there are none.
            starts: how many each row has of these.

        Returns:
            The new tokens' cache entries [L, B, T, W], and the last tokens' hidden states [B, D], not normalised.
        """
        (rows, tokens), device = x_BTD.shape[:2], x_BTD.device
        position_BT = torch.arange(tokens, device=device).expand(rows, -1)
        seen: list[Documents | Past] = [Documents(rows, tokens, device)] * len(self.layers)
        if past_LBPW is not None:
            start_B1 = torch.tensor(starts, device=device)[:, None]
            earlier_BP = torch.arange(past_LBPW.shape[2], device=device) < start_B1
            new_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
            masks = earlier_BP[:, None].expand(-1, tokens, -1), new_TT.expand(rows, -1, -1)
            mask_B1TS = torch.cat(masks, dim=2).unsqueeze(1)
            seen = [Past(latents_BPW, mask_B1TS) for latents_BPW in past_LBPW]
            position_BT = position_BT + start_B1
        cos_BTr, sin_BTr = self.rotary(position_BT)
        latents: list[Tensor] = []
        for layer, seen_here in zip(self.layers, seen, strict=True):
            x_BTD = layer(x_BTD, cos_BTr, sin_BTr, seen_here, context, latents)
        last_B = torch.tensor(lengths, device=device) - 1
        return torch.stack(latents), x_BTD[torch.arange(rows, device=device), last_B]

    def decode(self, ids_B: Tensor, latents_LBWT: Tensor, lengths_B: Tensor, context: ForwardContext = PLAIN) -> Tensor:
        """Run one more token per row: add it to the cache and return its hidden states [B, D], not normalised.

        Args:
            ids_B: the tokens.
            latents_LBWT: the cache, with room for one more token in each row.
            lengths_B: int64; how many tokens of each row are in the cache already.
        """
        latents_LBWT = latents_LBWT[:, : len(ids_B)]
        past_T = torch.arange(latents_LBWT.shape[3], device=ids_B.device)
        bias_B1T = latents_LBWT.new_zeros(len(ids_B), 1, len(past_T))
        bias_B1T.masked_fill_((past_T > lengths_B[:, None]).unsqueeze(1), -torch.inf)
        cos_BTr, sin_BTr = self.rotary(lengths_B[:, None])
        x_BTD = self.embed_tokens(ids_B)[:, None]
        for layer, latents_BWT in zip(self.layers, latents_LBWT, strict=True):
            cache = CachedLatents(latents_BWT, lengths_B, bias_B1T)
            x_BTD = layer(x_BTD, cos_BTr, sin_BTr, cache, context)
        return x_BTD[:, 0]

    def each_layer(self) -> Iterator[DecoderLayer]:
        """The layers, by their type."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer


class CausalLM(nn.Module):
    """Decoder and untied head, under the released names ``model.*`` and ``lm_head``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
