"""Vision tower, projector and decoder as one model, under the released tensor names (source: the released checkpoint).

Shapes: B rows, T tokens in a row, L = B*T, D hidden, P patches, M merged vision tokens, N positions with a target,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from model.network.attention import MultiheadLatentAttention
from model.network.batch import Batch, GridTHW
from model.network.config import ModelConfig
from model.network.decoder import CausalLM
from model.network.documents import Documents
from model.network.forward_context import PLAIN, ForwardContext
from model.network.moe import Experts, Router
from model.network.precision import linear
from model.network.target_logprobs import target_logprobs
from model.network.vision import MoonViT3d, PatchMergerProjector


class KimiK25(nn.Module):
    """The whole network.

    The constructor leaves the weights arbitrary: ``model.network.initial.new_model`` draws them, and
    ``model.checkpoint.load`` reads them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = MoonViT3d(config.vision_config)
        self.mm_projector = PatchMergerProjector(config.vision_config)
        self.language_model = CausalLM(config.text_config)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        grid_thws: Sequence[GridTHW],
        features_MD: Tensor | None = None,
        pads_BT: Tensor | None = None,
        context: ForwardContext = PLAIN,
    ) -> Tensor:
        """Token embeddings [..., D] with the media pads replaced, in reading order, by projected vision features.

        Args:
            input_ids: int64 [...].
            pixel_values, grid_thws: as in ``Batch``.
            features_MD: the features, if they were computed elsewhere; nothing is encoded then.
            pads_BT: bool; where ranks share rows, which tokens of the whole rows are media pads. The media are then
                those of the whole rows, and this rank takes the features of its own pads.

        Raises:
            ValueError: the number of media pads is not the number of vision features.
        """
        x = self.language_model.model.embed_tokens(input_ids)
        if features_MD is None:
            if pixel_values is None:
                return x
            merged = self.vision_tower(pixel_values, grid_thws, context.products)
            features_MD = self.mm_projector(merged, context.products)
        sharing = context.sequence
        if sharing is not None and pads_BT is not None:
            features_MD = sharing.of_columns(features_MD, pads_BT)
        features = features_MD.to(x.dtype)
        positions = (input_ids.flatten() == self.config.media_placeholder_token_id).nonzero().squeeze(1)
        if len(positions) != len(features):
            raise ValueError(f"{len(positions)} media pads for {len(features)} vision features")
        return x.flatten(0, -2).index_copy(0, positions, features).view_as(x)

    def hidden_states(self, batch: Batch, features_MD: Tensor | None = None, context: ForwardContext = PLAIN) -> Tensor:
        """Final hidden states [B, T, D] of a packed batch; ``features_MD`` as in ``embed``.

        Where ranks share the rows (``context.sequence``), the batch and the states are this rank's columns; the
        features are those of the whole rows.
        """
        positions_BT, documents_BT, pads_BT = batch.position_ids_BT, batch.document_ids_BT, None
        sharing = context.sequence
        if sharing is not None:
            columns = torch.stack((positions_BT, documents_BT, batch.input_ids_BT))
            positions_BT, documents_BT, ids_BT = sharing.whole_rows(columns)
            pads_BT = ids_BT == self.config.media_placeholder_token_id
        media = (batch.pixel_values, batch.grid_thws, features_MD, pads_BT)
        x_BTD = self.embed(batch.input_ids_BT, *media, context)
        return self.language_model.model(x_BTD, positions_BT, Documents.of(documents_BT), context)

    def forward(self, batch: Batch, context: ForwardContext = PLAIN) -> Tensor:
        """Logits [N, V] of the positions that have a target, in row-major order: those of ``batch.targets_N``."""
        hidden_LD = self.hidden_states(batch, context=context).flatten(0, 1)
        hidden_ND = hidden_LD.index_select(0, batch.target_positions_N)
        return linear(hidden_ND, self.language_model.lm_head, context.products)

    def logprobs(self, batch: Batch, features_MD: Tensor | None = None, context: ForwardContext = PLAIN) -> Tensor:
        """log p(target) [N] in nats of ``batch.targets_N``; the logits are never all in memory."""
        hidden_LD = self.hidden_states(batch, features_MD, context).flatten(0, 1)
        hidden_ND = hidden_LD.index_select(0, batch.target_positions_N)
        return target_logprobs(hidden_ND, self.language_model.lm_head, batch.targets_N, context.products)

    def attentions(self) -> Iterator[MultiheadLatentAttention]:
        """The attentions of all layers, in order."""
        for module in self.modules():
            if isinstance(module, MultiheadLatentAttention):
                yield module

    def routers(self) -> Iterator[Router]:
        """The routers of all layers with experts, in order."""
        for module in self.modules():
            if isinstance(module, Router):
                yield module

    def experts(self) -> Iterator[Experts]:
        """The routed experts of all layers that have some, in order."""
        for module in self.modules():
            if isinstance(module, Experts):
                yield module

    def auxiliary_loss(self) -> Tensor:
        """Sum over layers of the last forward's balance losses."""
        losses = [router.aux_loss for router in self.routers() if router.aux_loss is not None]
        return torch.stack(losses).sum() if losses else torch.zeros(())
