"""How many parameters a model has, by part and by the optimizer that trains them (source: K2 Table 2, released index).

Formulas are written in ``model.plan.figure.SYMBOLS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from model.network.config import ModelConfig
from model.plan.figure import COUNT, Figure


@dataclass(frozen=True)
class Count:
    """Parameters of one part.

    Attributes:
        muon: hidden matrices, trained by Muon.
        adamw: embeddings, head, norms, biases, patch embedding: trained by AdamW.
        fixed: not trained by gradient.
        products: those that are cast to the precision of matrix products when they are used.
    """

    muon: int = 0
    adamw: int = 0
    fixed: int = 0
    products: int = 0

    @property
    def total(self) -> int:
        return self.muon + self.adamw + self.fixed

    def __add__(self, other: Count) -> Count:
        return Count(
            self.muon + other.muon,
            self.adamw + other.adamw,
            self.fixed + other.fixed,
            self.products + other.products,
        )

    def __mul__(self, times: int) -> Count:
        return Count(self.muon * times, self.adamw * times, self.fixed * times, self.products * times)


def _matrices(count: int) -> Count:
    return Count(muon=count, products=count)


@dataclass(frozen=True)
class Parameters:
    """The parts of a model of shape ``config``; a layer's parts are counted for one layer."""

    config: ModelConfig

    @cached_property
    def dense_layers(self) -> int:
        text = self.config.text_config
        return sum(
            index < text.first_k_dense_replace or index % text.moe_layer_freq != 0
            for index in range(text.num_hidden_layers)
        )

    @property
    def expert_layers(self) -> int:
        return self.config.text_config.num_hidden_layers - self.dense_layers

    @property
    def embedding(self) -> Count:
        text = self.config.text_config
        return Count(adamw=text.vocab_size * text.hidden_size)

    @property
    def head(self) -> Count:
        size = self.embedding.adamw
        return Count(adamw=size, products=size)

    @property
    def attention(self) -> Count:
        """One layer's attention and both of its norms."""
        text = self.config.text_config
        hidden, heads = text.hidden_size, text.num_attention_heads
        matrices = (
            hidden * text.q_lora_rank
            + text.q_lora_rank * heads * text.qk_head_dim
            + hidden * (text.kv_lora_rank + text.qk_rope_head_dim)
            + text.kv_lora_rank * heads * (text.qk_nope_head_dim + text.v_head_dim)
            + heads * text.v_head_dim * hidden
        )
        return _matrices(matrices) + Count(adamw=text.q_lora_rank + text.kv_lora_rank + 2 * hidden)

    @property
    def dense_ffn(self) -> Count:
        text = self.config.text_config
        return _matrices(3 * text.hidden_size * text.intermediate_size)

    @property
    def expert(self) -> Count:
        """One expert."""
        text = self.config.text_config
        return _matrices(3 * text.hidden_size * text.moe_intermediate_size)

    @property
    def router(self) -> Count:
        """The matrix that gives the scores, which stays float32, and the correction bias."""
        text = self.config.text_config
        return Count(muon=text.n_routed_experts * text.hidden_size, fixed=text.n_routed_experts)

    @property
    def vision_block(self) -> Count:
        vision = self.config.vision_config
        width, inner = vision.vt_hidden_size, vision.vt_intermediate_size
        return _matrices(4 * width**2 + 2 * width * inner) + Count(adamw=4 * width + inner + width + 4 * width)

    @property
    def patch_embedding(self) -> Count:
        """The patch product with its bias, and the position grid."""
        vision = self.config.vision_config
        patch = 3 * vision.patch_size**2
        grid = vision.init_pos_emb_height * vision.init_pos_emb_width
        return Count(adamw=(patch + 1 + grid) * vision.vt_hidden_size)

    @property
    def vision_tower(self) -> Count:
        vision = self.config.vision_config
        last_norm = Count(adamw=2 * vision.vt_hidden_size)
        return self.patch_embedding + self.vision_block * vision.vt_num_hidden_layers + last_norm

    @property
    def projector(self) -> Count:
        vision = self.config.vision_config
        merged = vision.mm_hidden_size * vision.merge_kernel_size[0] * vision.merge_kernel_size[1]
        rest = 2 * vision.mm_hidden_size + merged + vision.text_hidden_size
        return _matrices(merged * (merged + vision.text_hidden_size)) + Count(adamw=rest)

    @property
    def routed(self) -> Count:
        """All routed experts of all layers."""
        return self.expert * (self.config.text_config.n_routed_experts * self.expert_layers)

    @property
    def language_model_dense(self) -> Count:
        """The language model without its routed experts."""
        text = self.config.text_config
        layers = self.attention * text.num_hidden_layers + self.dense_ffn * self.dense_layers
        mixtures = (self.expert * text.n_shared_experts + self.router) * self.expert_layers
        return self.embedding + self.head + layers + mixtures + Count(adamw=text.hidden_size)

    @property
    def dense(self) -> Count:
        """Everything but the routed experts."""
        return self.language_model_dense + self.vision_tower + self.projector

    @property
    def all(self) -> Count:
        """The whole model."""
        return self.dense + self.routed

    @property
    def active(self) -> int:
        """Parameters of the language model that one token uses."""
        text = self.config.text_config
        return self.language_model_dense.total + self.expert.total * text.num_experts_per_tok * self.expert_layers


def parameter_figures(config: ModelConfig) -> list[Figure]:
    """Figures for the whole model and its large parts."""
    parts = Parameters(config)
    shapes = "shapes of the released index"
    return [
        Figure("total", parts.all.total, COUNT, "language model + vision tower + projector", shapes),
        Figure(
            "language model",
            parts.language_model_dense.total + parts.routed.total,
            COUNT,
            "2VD + D + L(Dq + qHh + D(c+r) + cH(n+v) + HvD + q + c + 2D) + 3DI*Ld + (3DF(E+S) + ED + E)Lm",
            f"{shapes}; K2 Table 2",
        ),
        Figure("active for a token", parts.active, COUNT, "language model - 3DF(E-k)Lm", "K2 Table 2"),
        Figure("routed experts", parts.routed.total, COUNT, "3DF*E*Lm", shapes),
        Figure(
            "vision tower",
            parts.vision_tower.total,
            COUNT,
            "b(4w^2 + 2wf + 9w + f) + w(3*patch^2 + 1 + grid) + 2w",
            shapes,
        ),
        Figure("projector", parts.projector.total, COUNT, "4w(4w + D) + 2w + 4w + D", shapes),
    ]
