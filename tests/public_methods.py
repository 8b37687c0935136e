"""The methods that users can import from the package."""

from inspect import signature

import captum_transformer
from captum_transformer import LayerRelevance, TransformerMethod

_CLASSES = {
    name: found
    for name in captum_transformer.__all__
    if isinstance(found := getattr(captum_transformer, name), type)
    and found not in (TransformerMethod, LayerRelevance)
}
EVERY = {name for name, found in _CLASSES.items() if hasattr(found, "attribute")}
# The others take two inputs, or have to be told more than the model.
OF_SCORES = {
    name
    for name in EVERY
    if issubclass(_CLASSES[name], TransformerMethod)
    and all(
        p.default is not p.empty for p in list(signature(_CLASSES[name]).parameters.values())[1:]
    )
}
