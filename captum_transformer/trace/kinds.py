"""The kinds of operations and the roles of their arguments, which rules are written for."""

import enum


class Does(enum.Enum):
    """What an operation does to the entries of its operands."""

    ASKS = "reads shapes, types or truth values; no signal comes out"
    MOVES = "each entry of the output is an entry of an operand, or a constant"
    SELECTS = "moves entries that are chosen by their size"
    SUMS = "each entry of the output is a sum or a mean of entries of an operand"
    WORKS_BY_ENTRY = "each entry of the output is made of the entries at its own place"
    MIXES = "each entry of the output is a sum of products, over features or over tokens"
    HIDES = "writes where autograd does not see it"
    UNKNOWN = "not in the table"


class Kind(enum.Enum):
    """The kinds of operations that rules distinguish, each with what it does."""

    ASKS = enum.auto(), Does.ASKS
    MOVE = enum.auto(), Does.MOVES
    CONCATENATE = enum.auto(), Does.MOVES
    STACK = enum.auto(), Does.MOVES
    PAD = enum.auto(), Does.MOVES
    AS_COMPLEX = enum.auto(), Does.MOVES
    AS_REAL = enum.auto(), Does.MOVES
    COPY = enum.auto(), Does.WORKS_BY_ENTRY  # the same entries, perhaps with another dtype
    EMBEDDING = enum.auto(), Does.MOVES  # rows of a constant table, looked up by ids
    CHOICE = enum.auto(), Does.SELECTS  # along a dimension, which may become shorter
    MAXIMUM = enum.auto(), Does.SELECTS  # of two tensors, of windows or of whole dimensions
    SUM = enum.auto(), Does.SUMS
    MEAN = enum.auto(), Does.SUMS
    SUM_AT_INDICES = enum.auto(), Does.SUMS
    POOL = enum.auto(), Does.SUMS  # sums or means of windows, interpolation
    ENTRYWISE = enum.auto(), Does.WORKS_BY_ENTRY
    HOMOGENEOUS = enum.auto(), Does.WORKS_BY_ENTRY  # f(c x) = c f(x) for c > 0, such as ReLU
    RECIPROCAL = enum.auto(), Does.WORKS_BY_ENTRY  # the input is a denominator: 1/x, x**-0.5
    DROPOUT = enum.auto(), Does.WORKS_BY_ENTRY
    NORM = enum.auto(), Does.WORKS_BY_ENTRY
    SOFTMAX = enum.auto(), Does.WORKS_BY_ENTRY
    LOG_SOFTMAX = enum.auto(), Does.WORKS_BY_ENTRY
    ADD = enum.auto(), Does.WORKS_BY_ENTRY
    SUB = enum.auto(), Does.WORKS_BY_ENTRY
    MUL = enum.auto(), Does.WORKS_BY_ENTRY
    DIV = enum.auto(), Does.WORKS_BY_ENTRY
    CONTRAST = enum.auto(), Does.WORKS_BY_ENTRY  # one score minus another; not a torch function
    PRODUCT = enum.auto(), Does.MIXES  # matrix products in every spelling; see `Contraction`
    CONV = enum.auto(), Does.MIXES
    TRANSPOSED_CONV = enum.auto(), Does.MIXES
    ATTENTION = enum.auto(), Does.MIXES
    TRANSFORM = enum.auto(), Does.MIXES  # Fourier transforms, with complex inputs or outputs
    SAMPLE = enum.auto(), Does.MIXES  # entries interpolated between positions
    DISTANCE = enum.auto(), Does.MIXES  # the norm of a signal, or its distance from another one
    DERIVED = enum.auto(), Does.MIXES  # products and variances of entries along a dimension
    SMOOTH_MAXIMUM = enum.auto(), Does.MIXES  # the logarithm of a sum of exponentials
    SOLVE = enum.auto(), Does.MIXES  # solves a linear system: a signal divided by a matrix
    DATA = enum.auto(), Does.HIDES
    UNKNOWN = enum.auto(), Does.UNKNOWN

    # Hash by identity: sets of members are used at each operation, and Enum's own hash is slow.
    __hash__ = object.__hash__

    @property
    def does(self) -> Does:
        """What an operation of this kind does to entries."""
        does: Does = self.value[1]
        return does


class Form(enum.Enum):
    """The form of an entry-wise function that a softmax, norm or step function may be made of.

    For functions that move entries: whether they only reorder them.
    """

    POWER = enum.auto()
    EXPONENTIAL = enum.auto()
    LOGARITHM = enum.auto()
    STEP = enum.auto()  # its derivative is zero
    ORDERS = enum.auto()  # each entry appears exactly once in the output
    PIECES = enum.auto()  # piecewise, such as the absolute value: may be a part of a step function


class Role(enum.Enum):
    """The role of a tensor among the arguments of an operation."""

    SIGNAL = enum.auto()
    WEIGHT = enum.auto()
    BIAS = enum.auto()
    INDEX = enum.auto()  # selects entries or positions
    EXTENT = enum.auto()  # sizes and offsets that are passed as tensors
    MASK = enum.auto()
    STATISTIC = enum.auto()

    __hash__ = object.__hash__


MOVES = frozenset(kind for kind in Kind if kind.does is Does.MOVES and kind is not Kind.EMBEDDING)
# Conversions between pairs of real numbers and complex numbers.
AS_OTHERS = frozenset({Kind.AS_COMPLEX, Kind.AS_REAL})
# Moves, and copies, which may have another dtype.
COPIES = MOVES | {Kind.COPY}
# For operands of the output's shape, these keep the position of every entry and its relevance.
BY_ENTRY = frozenset(kind for kind in Kind if kind.does is Does.WORKS_BY_ENTRY)
# These treat each entry separately; norms and softmax use statistics of other entries.
ENTRIES_ALONE = BY_ENTRY - {Kind.NORM, Kind.SOFTMAX, Kind.LOG_SOFTMAX}
CONVOLUTIONS = frozenset({Kind.CONV, Kind.TRANSPOSED_CONV})
