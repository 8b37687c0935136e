"""Loads models of Transformers from the hub or a folder."""

from typing import Any

from captum_transformer.cli.errors import UserError, one_line
from captum_transformer.cli.loaded import HuggingFaceModel, Wanted
from captum_transformer.cli.packages import package
from captum_transformer.cli.timm_models import near


def of_hugging_face(wanted: Wanted) -> HuggingFaceModel:
    """Loads a model of Transformers from the hub or a folder."""
    transformers = package("transformers", "text")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # It reports each attempt to reach the hub; the error reports it once.
    package("huggingface_hub.utils.logging", "text").set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(wanted.name, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{wanted.name} is neither a model of timm nor one of Hugging Face that can be "
            f"loaded.{near(wanted.name)} ({one_line(error)})"
        ) from error
    name = next(iter(config.architectures or []), "")
    kind = _class_named(name, transformers)
    if kind is None:
        raise UserError(
            f"{wanted.name} is a {name or 'model without a named class'}, which this version of "
            "Transformers doesn't have. Code from a model's files is not run."
        )
    try:
        if wanted.random_weights:
            return HuggingFaceModel(kind(config), wanted.name)
        model, report = kind.from_pretrained(
            wanted.name, config=config, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{wanted.name} can't be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{wanted.name} lacks weights of a {name}: {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}."
        )
    return HuggingFaceModel(model, wanted.name)


def _class_named(name: str, transformers: Any) -> Any:
    kind = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if known else None
