"""The packages that only data sets of explanations need."""

from importlib import import_module
from typing import Any


def required(module: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: Its name.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If it is not installed; the error says what to install.

    Example:
        >>> required("safetensors.torch").__name__
        'safetensors.torch'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name not in (module, package):
            raise
        raise ModuleNotFoundError(
            f"Explanations of a data set are kept in safetensors shards with a Parquet index, and "
            f"`{package}` is not installed. Install both: pip install "
            "'captum-transformer[datasets]', or pip install safetensors pyarrow",
            name=error.name,
        ) from error
