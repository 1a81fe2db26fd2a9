"""A plugin of the engine for what its CPU path leaves out of DeepSeek-V3."""

from typing import Any


def register() -> None:
    """Attention in plain torch gets MLA in the absorbed form, as the other backends do; positions need no YaRN."""
    from sglang.srt.layers.rotary_embedding import factory
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers

    handlers.AttentionBackendRegistry.register("torch_native", handlers._dispatch_mla_subtype)
    with_yarn = factory.get_rope_cpu

    def rope(*sizes: Any) -> Any:
        *arguments, scaling, dtype, rotated_part, device = sizes
        if scaling is None:
            return factory.get_rope(*arguments, scaling, dtype, rotated_part)
        return with_yarn(*arguments, scaling, dtype, rotated_part, device)

    factory.get_rope_cpu = rope
