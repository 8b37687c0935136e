"""Sets of tokens, and their versions: what each of them is after some attention calls."""

from collections.abc import Iterable
from dataclasses import dataclass

from captum_transformer.trace.attention import AttentionCall

LEARNED = "learned"


class Stream:
    """A set of tokens.

    Attributes:
        names: the inputs that its tokens come from.
        parts: the streams that it was concatenated from.
        same_as: the stream that it has turned out to be the same tokens as.
        joined: whether it was concatenated from tokens none of which had attended before.
    """

    def __init__(
        self, names: Iterable[str], parts: Iterable["Stream"] = (), *, joined: bool = False
    ) -> None:
        self.names = list(names)
        self.parts = tuple(parts)
        self.joined = joined
        self.same_as: Stream | None = None

    @property
    def root(self) -> "Stream":
        """The stream that represents all streams that turned out to be the same tokens."""
        return self if self.same_as is None else self.same_as.root

    @property
    def name(self) -> str:
        """The names of the inputs that its tokens come from."""
        return "+".join(self.root.names) or LEARNED

    @property
    def pieces(self) -> "frozenset[Stream]":
        """The stream itself and those that it was concatenated from."""
        root = self.root
        return frozenset((root,)).union(*(part.pieces for part in root.parts))

    def unite(self, other: "Stream") -> None:
        """Records that two streams are the same tokens, such as after adding their features."""
        mine, others = self.root, other.root
        if mine is others:
            return
        if mine in others.pieces or others in mine.pieces:
            # A concatenation is not one of its own pieces, although a piece may be added to a part.
            return
        mine.names += [name for name in others.names if name not in mine.names]
        mine.joined |= others.joined
        others.same_as = mine


@dataclass(eq=False, slots=True)
class Version:
    """The tokens of a stream after some attention calls.

    Attributes:
        own: the stream that it was part of when it was made.
        before: the versions that it was made from: those that its call's queries carried, or the
            two where parallel branches meet; empty for tokens that have not attended yet.
        call: the attention call that made it, if one did.
        keys: the versions that the call attended to.
        tower: the stream whose attention calls count as layers of one tower with its own: the
            stream itself, or the one that a learned query which has not attended before reads.
        attention: bit set of the attention calls in its history as a query.
        of_pairs: whether its call's probabilities were made of several streams, as of pairs of
            copies, and it is unknown which of them are the queries.
    """

    own: Stream
    before: tuple["Version", ...] = ()
    call: AttentionCall | None = None
    keys: tuple["Version", ...] = ()
    tower: Stream | None = None
    attention: int = 0
    of_pairs: bool = False

    def __post_init__(self) -> None:
        """Takes over the history of the versions that it was made from."""
        for version in self.before:
            self.attention |= version.attention
        if self.call is not None:
            self.attention |= 1 << self.call.layer

    @property
    def stream(self) -> Stream:
        """The stream that it is part of, which may have been united with others."""
        return self.own.root

    @property
    def its_tower(self) -> Stream:
        """The stream that represents its tower."""
        return self.stream if self.tower is None else self.tower.root

    @property
    def is_start(self) -> bool:
        """Whether its tokens have not attended yet."""
        return not self.before

    def descends_from(self, other: "Version") -> bool:
        """Whether it is a later version of ``other``, or of the same history."""
        return other.stream in self.stream.pieces and not other.attention & ~self.attention

    @property
    def is_cross_attention(self) -> bool:
        """Whether its call's queries and keys are tokens of different streams.

        A learned query that reads a stream without having attended before, such as a class token,
        is one of the stream's own tokens.
        """
        if self.call is None or not self.keys:
            return False
        pieces = self.its_tower.pieces
        return self.of_pairs or all(pieces.isdisjoint(key.its_tower.pieces) for key in self.keys)


Versions = tuple[Version, ...]
