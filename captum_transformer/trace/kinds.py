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
    """The kinds of operations that rules distinguish, each with what it does.

    Code that runs for each operation holds the members that it compares with in constants: before
    Python 3.12, reading a member of an enum takes 20 times as long.

    Attributes:
        does: what an operation of this kind does to entries.
    """

    does: Does

    def __new__(cls, does: Does) -> "Kind":
        """Numbers the members, since several do the same."""
        kind = object.__new__(cls)
        kind._value_ = len(cls.__members__)
        kind.does = does
        return kind

    ASKS = Does.ASKS
    MOVE = Does.MOVES
    CONCATENATE = Does.MOVES
    STACK = Does.MOVES
    PAD = Does.MOVES
    AS_COMPLEX = Does.MOVES
    AS_REAL = Does.MOVES
    COPY = Does.WORKS_BY_ENTRY  # the same entries, perhaps with another dtype
    EMBEDDING = Does.MOVES  # rows of a constant table, looked up by ids
    CHOICE = Does.SELECTS  # along a dimension, which may become shorter
    MAXIMUM = Does.SELECTS  # of two tensors, of windows or of whole dimensions
    SUM = Does.SUMS
    MEAN = Does.SUMS
    SUM_AT_INDICES = Does.SUMS
    POOL = Does.SUMS  # sums or means of windows, interpolation
    ENTRYWISE = Does.WORKS_BY_ENTRY
    HOMOGENEOUS = Does.WORKS_BY_ENTRY  # f(c x) = c f(x) for c > 0, such as ReLU
    RECIPROCAL = Does.WORKS_BY_ENTRY  # the input is a denominator: 1/x, x**-0.5
    DROPOUT = Does.WORKS_BY_ENTRY
    NORM = Does.WORKS_BY_ENTRY
    SOFTMAX = Does.WORKS_BY_ENTRY
    LOG_SOFTMAX = Does.WORKS_BY_ENTRY
    ADD = Does.WORKS_BY_ENTRY
    SUB = Does.WORKS_BY_ENTRY
    MUL = Does.WORKS_BY_ENTRY
    DIV = Does.WORKS_BY_ENTRY
    CONTRAST = Does.WORKS_BY_ENTRY  # one score minus another; not a torch function
    PRODUCT = Does.MIXES  # matrix products in every spelling; see `Contraction`
    CONV = Does.MIXES
    TRANSPOSED_CONV = Does.MIXES
    ATTENTION = Does.MIXES
    TRANSFORM = Does.MIXES  # Fourier transforms, with complex inputs or outputs
    SAMPLE = Does.MIXES  # entries interpolated between positions
    DISTANCE = Does.MIXES  # the norm of a signal, or its distance from another one
    DERIVED = Does.MIXES  # products and variances of entries along a dimension
    SMOOTH_MAXIMUM = Does.MIXES  # the logarithm of a sum of exponentials
    SOLVE = Does.MIXES  # solves a linear system: a signal divided by a matrix
    DATA = Does.HIDES
    UNKNOWN = Does.UNKNOWN

    # Hash by identity: sets of members are used at each operation, and Enum's own hash is slow.
    __hash__ = object.__hash__


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
