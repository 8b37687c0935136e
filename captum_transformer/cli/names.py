"""What the arguments name: known before anything is imported, so that --help is there at once."""

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
# What `timm.create_model` takes beside the arguments of the model: names of files and of downloads.
NOT_OF_THE_MODEL = frozenset(
    "cache_dir checkpoint_path exportable no_jit pretrained pretrained_cfg pretrained_cfg_overlay "
    "scriptable".split()
)
