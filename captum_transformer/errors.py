"""What can go wrong while a model is explained, as exceptions that say what to do about it."""

__all__ = [
    "AmbiguousOutputError",
    "CaptureError",
    "CaptureMismatchError",
    "ConservationError",
    "DamagedDataError",
    "ExplanationError",
    "InvalidInputError",
    "InvalidLayerError",
    "InvalidRuleError",
    "InvalidTargetError",
    "MixedSamplesError",
    "NoAttentionError",
    "UnseenOperationError",
    "UnsupportedOperationError",
]


class ExplanationError(RuntimeError):
    """Base class: this forward pass can't be explained correctly, so it isn't explained at all."""


class NoAttentionError(ExplanationError):
    """The trace saw no attention call that the inputs reach."""


class UnseenOperationError(ExplanationError):
    """A tensor depends on the inputs through an operation that the trace can't see."""


class UnsupportedOperationError(ExplanationError, NotImplementedError):
    """An operation on the way from the inputs to the output has no rule in the chosen method."""


class ConservationError(ExplanationError):
    """A rule passes on more or less relevance than it got, without declaring why."""


class InvalidRuleError(ExplanationError, ValueError):
    """The result of your own rule or map doesn't fit the operation that it is for."""


class MixedSamplesError(ExplanationError):
    """The score of one sample depends on another sample of the batch."""


class AmbiguousOutputError(ExplanationError, ValueError):
    """The model returns no tensor, or several, that the target could select from."""


class InvalidInputError(AssertionError, ValueError):
    """The inputs can't be explained as given (an ``AssertionError``, as Captum raises)."""


class InvalidTargetError(AssertionError, ValueError):
    """The target does not fit the output (an ``AssertionError``, as Captum raises)."""


class InvalidLayerError(ExplanationError, ValueError):
    """A chosen layer does not exist in the model, or does not run as specified."""


class DamagedDataError(ValueError):
    """A file of stored explanations is damaged, missing, or belongs to other explanations."""


class CaptureError(ExplanationError):
    """A call can't be captured as a graph, or can only be explained as it was captured."""


class CaptureMismatchError(CaptureError, ValueError):
    """A call differs from the captured one, or the model has changed since."""
