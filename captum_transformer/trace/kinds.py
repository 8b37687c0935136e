"""What an operation does, and what its arguments are for: the words that rules are written in."""

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
    """The kinds of operation that rules tell apart, each with what it does."""

    ASKS = enum.auto(), Does.ASKS
    MOVE = enum.auto(), Does.MOVES
    CONCATENATE = enum.auto(), Does.MOVES
    STACK = enum.auto(), Does.MOVES
    PAD = enum.auto(), Does.MOVES
    AS_COMPLEX = enum.auto(), Does.MOVES
    AS_REAL = enum.auto(), Does.MOVES
    COPY = enum.auto(), Does.WORKS_BY_ENTRY  # the same entries, perhaps of another type
    EMBEDDING = enum.auto(), Does.MOVES  # rows of a constant table, at places given by ids
    CHOICE = enum.auto(), Does.SELECTS  # along a dimension, the output as long or shorter
    MAXIMUM = enum.auto(), Does.SELECTS  # of two tensors, of windows or of whole dimensions
    SUM = enum.auto(), Does.SUMS
    MEAN = enum.auto(), Does.SUMS
    SUM_AT_INDICES = enum.auto(), Does.SUMS
    POOL = enum.auto(), Does.SUMS  # sums or means of windows, interpolation
    ENTRYWISE = enum.auto(), Does.WORKS_BY_ENTRY
    HOMOGENEOUS = enum.auto(), Does.WORKS_BY_ENTRY  # f(c x) = c f(x) for c > 0, as ReLU
    RECIPROCAL = enum.auto(), Does.WORKS_BY_ENTRY  # what becomes a denominator: 1/x, x**-0.5
    DROPOUT = enum.auto(), Does.WORKS_BY_ENTRY
    NORM = enum.auto(), Does.WORKS_BY_ENTRY
    SOFTMAX = enum.auto(), Does.WORKS_BY_ENTRY
    LOG_SOFTMAX = enum.auto(), Does.WORKS_BY_ENTRY
    ADD = enum.auto(), Does.WORKS_BY_ENTRY
    SUB = enum.auto(), Does.WORKS_BY_ENTRY
    MUL = enum.auto(), Does.WORKS_BY_ENTRY
    DIV = enum.auto(), Does.WORKS_BY_ENTRY
    CONTRAST = enum.auto(), Does.WORKS_BY_ENTRY  # one score minus another; no torch function is
    PRODUCT = enum.auto(), Does.MIXES  # matrix products in every spelling; see `Contraction`
    CONV = enum.auto(), Does.MIXES
    TRANSPOSED_CONV = enum.auto(), Does.MIXES
    ATTENTION = enum.auto(), Does.MIXES
    TRANSFORM = enum.auto(), Does.MIXES  # Fourier transforms, with complex numbers in or out
    SAMPLE = enum.auto(), Does.MIXES  # entries read between places
    DISTANCE = enum.auto(), Does.MIXES  # how long a signal is, or how far from another one
    DERIVED = enum.auto(), Does.MIXES  # products and variances of entries along a dimension
    SMOOTH_MAXIMUM = enum.auto(), Does.MIXES  # the logarithm of a sum of exponentials
    SOLVE = enum.auto(), Does.MIXES  # a signal divided by a matrix
    DATA = enum.auto(), Does.HIDES
    UNKNOWN = enum.auto(), Does.UNKNOWN

    # By identity: members are looked up in sets at each operation, and Enum hashes in Python.
    __hash__ = object.__hash__

    @property
    def does(self) -> Does:
        """What an operation of this kind does to entries."""
        does: Does = self.value[1]
        return does


class Form(enum.Enum):
    """What a function of each entry is, where a softmax or a norm may be made of it, or a step.

    Of one that moves entries, whether all that it does is to order them.
    """

    POWER = enum.auto()
    EXPONENTIAL = enum.auto()
    LOGARITHM = enum.auto()
    STEP = enum.auto()  # its derivative is zero
    ORDERS = enum.auto()  # each entry comes out just once
    PIECES = enum.auto()  # of several pieces, as the absolute value: with others it may be a step


class Role(enum.Enum):
    """What a tensor is for among an operation's arguments."""

    SIGNAL = enum.auto()
    WEIGHT = enum.auto()
    BIAS = enum.auto()
    INDEX = enum.auto()  # which entries go where
    EXTENT = enum.auto()  # how much of a tensor, in which shape: numbers, given as tensors
    MASK = enum.auto()
    STATISTIC = enum.auto()

    __hash__ = object.__hash__


MOVES = frozenset(kind for kind in Kind if kind.does is Does.MOVES and kind is not Kind.EMBEDDING)
# Pairs of real numbers as complex ones, and back.
AS_OTHERS = frozenset({Kind.AS_COMPLEX, Kind.AS_REAL})
# Beside these a copy, which may be of another type.
COPIES = MOVES | {Kind.COPY}
# On operands of the output's own shape these leave every entry, and its relevance, where it is.
BY_ENTRY = frozenset(kind for kind in Kind if kind.does is Does.WORKS_BY_ENTRY)
# Those that treat each entry by itself: norms and softmax look at others for their statistics.
ENTRIES_ALONE = BY_ENTRY - {Kind.NORM, Kind.SOFTMAX, Kind.LOG_SOFTMAX}
CONVOLUTIONS = frozenset({Kind.CONV, Kind.TRANSPOSED_CONV})
