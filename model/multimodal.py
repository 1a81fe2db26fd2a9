"""Vision tower, projector and decoder as one model, under the released tensor names (source: the released checkpoint).

Shapes: B rows, T tokens in a row, L = B*T, D hidden, P patches, M merged vision tokens, N positions with a target,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.attention import MultiheadLatentAttention
from model.config import ModelConfig
from model.decoder import CausalLM
from model.documents import Documents
from model.initial import initialise
from model.moe import Router
from model.precision import linear
from model.sequence_parallel import sequence_group
from model.target_logprobs import target_logprobs
from model.vision import GridTHW, MoonViT3d, PatchMergerProjector

if TYPE_CHECKING:
    from model.data.packing import Batch


class KimiK25(nn.Module):
    """The whole network. ``seed`` fixes the initial weights."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = MoonViT3d(config.vision_config)
        self.mm_projector = PatchMergerProjector(config.vision_config)
        self.language_model = CausalLM(config.text_config)
        initialise(self, seed)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        grid_thws: Sequence[GridTHW],
        features_MD: Tensor | None = None,
        pads_BT: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings [..., D] with the media pads replaced, in reading order, by projected vision features.

        ``features_MD``: these features where they were computed elsewhere; nothing is encoded then. ``pads_BT``: where
        ranks share rows, the pads of the whole rows, whose features the media are; this rank's are chosen from them.

        Raises:
            ValueError: if the number of media pads is not the number of vision features.
        """
        x = self.language_model.model.embed_tokens(input_ids)
        if features_MD is None:
            if pixel_values is None:
                return x
            features_MD = self.mm_projector(self.vision_tower(pixel_values, grid_thws))
        sharing = sequence_group()
        if sharing is not None and pads_BT is not None:
            features_MD = sharing.of_columns(features_MD, pads_BT)
        features = features_MD.to(x.dtype)
        positions = (input_ids.flatten() == self.config.media_placeholder_token_id).nonzero().squeeze(1)
        if len(positions) != len(features):
            raise ValueError(f"{len(positions)} media pads for {len(features)} vision features")
        return x.flatten(0, -2).index_copy(0, positions, features).view_as(x)

    def hidden_states(self, batch: Batch, features_MD: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, D] of a packed batch; ``features_MD`` as in ``embed``.

        Where ranks share the rows (``model.sequence_parallel``), the batch and the states are this rank's columns; the
        features are those of the whole rows.
        """
        positions_BT, documents_BT, pads_BT = batch.position_ids_BT, batch.document_ids_BT, None
        sharing = sequence_group()
        if sharing is not None:
            own = torch.stack((positions_BT, documents_BT, batch.input_ids_BT))
            positions_BT, documents_BT, ids_BT = sharing.whole_rows(own)
            pads_BT = ids_BT == self.config.media_placeholder_token_id
        x_BTD = self.embed(batch.input_ids_BT, batch.pixel_values, batch.grid_thws, features_MD, pads_BT)
        return self.language_model.model(x_BTD, positions_BT, Documents.of(documents_BT))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [N, V] of the positions that have a target, in row-major order: those of ``batch.targets_N``."""
        hidden_BTD = self.hidden_states(batch)
        return linear(hidden_BTD.flatten(0, 1).index_select(0, batch.target_positions_N), self.language_model.lm_head)

    def logprobs(self, batch: Batch, features_MD: Tensor | None = None) -> Tensor:
        """log p(target) [N] in nats of ``batch.targets_N``; the logits are never in memory as a whole."""
        hidden_LD = self.hidden_states(batch, features_MD).flatten(0, 1)
        hidden_ND = hidden_LD.index_select(0, batch.target_positions_N)
        return target_logprobs(hidden_ND, self.language_model.lm_head, batch.targets_N)

    def attentions(self) -> Iterator[MultiheadLatentAttention]:
        for module in self.modules():
            if isinstance(module, MultiheadLatentAttention):
                yield module

    def routers(self) -> Iterator[Router]:
        for module in self.modules():
            if isinstance(module, Router):
                yield module

    def auxiliary_loss(self) -> Tensor:
        """Sum over layers of the last forward's balance losses."""
        losses = [router.aux_loss for router in self.routers() if router.aux_loss is not None]
        return torch.stack(losses).sum() if losses else torch.zeros(())
