"""Names used by the arguments, without imports, so that --help is fast."""

METHODS = (
    "TransformerAttribution",
    "GenericAttentionRelevance",
    "ConservativeLRP",
    "AttnLRP",
    "GIM",
    "LibraGrad",
    "LeGrad",
    "PartialLRP",
    "AttentionGradCam",
    "AttentionRollout",
    "RawAttention",
)
FORMATS = ("png", "html", "safetensors")
# Arguments of `timm.create_model` that aren't the model's, such as names of files and downloads.
NOT_OF_THE_MODEL = frozenset(
    "cache_dir checkpoint_path exportable no_jit pretrained pretrained_cfg pretrained_cfg_overlay "
    "scriptable".split()
)
