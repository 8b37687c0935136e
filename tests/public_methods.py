"""The methods that users can import from the package."""

import captum_transformer
from captum_transformer import TransformerMethod

_CLASSES = {
    name: found
    for name in captum_transformer.__all__
    if isinstance(found := getattr(captum_transformer, name), type)
    and found is not TransformerMethod
}
EVERY = {name for name, found in _CLASSES.items() if hasattr(found, "attribute")}
# The others take two inputs.
OF_SCORES = {name for name in EVERY if issubclass(_CLASSES[name], TransformerMethod)}
