"""A plugin of the engine: its plain torch attention gets MLA in the absorbed form, as its other backends do."""


def register() -> None:
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers

    handlers.AttentionBackendRegistry.register("torch_native", handlers._dispatch_mla_subtype)
