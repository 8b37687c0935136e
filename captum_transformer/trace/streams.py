"""Token streams: which sets of tokens a model has, and which of them each attention call connects.

A stream starts where an input becomes tokens; learned queries that no input reaches are a stream
of their own. Each attention call makes a new *version* of its queries' stream, and what is computed
from tokens carries their newest version. So old states that are used again, and modules that are
called twice, need no special care.
"""

from collections.abc import Iterable, Mapping, Sequence

from captum_transformer.trace.attention import AttentionCall, ExplicitAttention
from captum_transformer.trace.features import feature_dims
from captum_transformer.trace.kinds import BY_ENTRY, MOVES, Kind
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.products import lengths
from captum_transformer.trace.queries import query_value
from captum_transformer.trace.stacked import count_of_tokens
from captum_transformer.trace.value import Value
from captum_transformer.trace.versions import LEARNED, Stream, Version, Versions

_TIES_TOKENS = frozenset({Kind.ADD, Kind.SUB, Kind.MUL, Kind.DIV})
_KEEPS_TOKENS = MOVES | BY_ENTRY


class Streams:
    """The streams of a traced forward pass, as far as its operations have been read.

    Args:
        inputs: the inputs of the forward pass, by name.

    Attributes:
        in_place: pairs of a value and an earlier attention call that are known to hold the same
            tokens in the same order; they are the same for all targets.
    """

    def __init__(self, inputs: Mapping[str, Value]) -> None:
        self.in_place: set[tuple[Value, AttentionCall]] = set()
        self._names = {value: name for name, value in inputs.items()}
        self._versions: dict[Value, Versions] = {
            value: (Version(Stream([name])),)
            for name, value in inputs.items()
            if not value.holds_ids
        }
        self.calls: dict[AttentionCall, Version] = {}
        self._met: dict[frozenset[Version], Version] = {}
        self._joined: dict[frozenset[Stream], Stream] = {}
        self._read: set[Operation] = set()

    def __getitem__(self, value: Value) -> Versions:
        """The versions that a value of the forward pass carries."""
        return self._versions.get(value, ())

    def read(self, operations: Iterable[Operation]) -> None:
        """Reads further operations, in order, and skips those that have been read."""
        for operation in operations:
            if operation not in self._read:
                self._read.add(operation)
                versions = self._after(operation)
                outputs = (value for value in operation.outputs if value is not None)
                self._versions |= dict.fromkeys(outputs, versions)

    @property
    def cross_attention(self) -> bool:
        """Whether any attention call connects two different streams."""
        return any(version.is_cross_attention for version in self.calls.values())

    def pairs(self) -> list[tuple[str, str]]:
        """Returns, for each attention call, the names of its queries' and its keys' stream."""
        names = self.names()
        found = []
        for version in self.calls.values():
            keys = self._whole(version.keys)
            found.append((names[version.stream], LEARNED if keys is None else names[keys]))
        return found

    def names(self) -> dict[Stream, str]:
        """A name for each stream that attends or is attended to; repeated names are numbered."""
        found: dict[Stream, str] = {}
        for version in self.calls.values():
            for stream in (self._whole(version.keys), version.stream):
                if stream is not None and stream not in found:
                    count = sum(other.name == stream.name for other in found)
                    found[stream] = stream.name if not count else f"{stream.name} ({count + 1})"
        return found

    def _after(self, operation: Operation) -> Versions:
        if operation.kind is Kind.EMBEDDING:
            return (Version(Stream([self._name_of_ids(operation)])),)
        call = operation.attention
        if call is not None and not call.among_channels:
            version = self._attended(call)
            self.calls[call] = version
            return (version,)
        carried: Sequence[Versions] = [
            self._versions.get(value, ()) for _, value in operation.carried()
        ]
        if operation.kind is Kind.CONCATENATE and not _joins_features(operation):
            return _joined(operation, carried) or self._newest(carried)
        if operation.kind in _TIES_TOKENS and len(carried) == 2:
            carried = _of_tokens(operation, carried)
        elif operation.kind in MOVES:
            _unite(carried)
        return self._newest(carried)

    def _newest(self, carried: Iterable[Versions]) -> Versions:
        """Returns the versions that a result of several values carries, in the values' order."""
        several = dict.fromkeys(version for versions in carried for version in versions)
        found: list[Version] = list(several) if len(several) == 1 else []
        for version in several if not found else ():
            if any(known.descends_from(version) for known in found):
                continue
            found = [known for known in found if not version.descends_from(known)]
            branch = next((known for known in found if known.stream is version.stream), None)
            if branch is None:
                found.append(version)
                continue
            meeting = frozenset((branch, version))
            if meeting not in self._met:
                self._met[meeting] = Version(version.own, (branch, version), tower=branch.tower)
            found[found.index(branch)] = self._met[meeting]
        return tuple(found)

    def _whole(self, versions: Versions) -> Stream | None:
        """Returns the stream of some tokens, a joint one if they attended separately before."""
        streams = {version.stream: None for version in versions}
        if len(streams) < 2:
            return next(iter(streams), None)
        key = frozenset(streams)
        if key not in self._joined:
            self._joined[key] = _together(streams)
        return self._joined[key]

    def _name_of_ids(self, operation: Operation) -> str:
        ((_, ids), *_) = operation.carried()
        sources = [n for v, n in self._names.items() if v is ids or ids.descends_from(v)]
        return "+".join(sources) or LEARNED

    def _attended(self, call: AttentionCall) -> Version:
        query = query_value(call)
        value = call.value.value
        queries = self._versions.get(query, ()) if query is not None else ()
        keys = self._versions.get(value, ()) if value is not None else ()
        if len(queries) == 1:
            return Version(queries[0].own, queries, call, keys, queries[0].tower)
        together = self._whole(queries)
        if together is not None:
            of_pairs = isinstance(call, ExplicitAttention) and query is call.weights.value
            return Version(together, queries, call, keys, of_pairs=of_pairs)
        start = Version(Stream([]))
        if query is None and value is None:
            # Learned queries among themselves, before any of them has seen an input.
            return Version(start.own, (start,), call, (start,))
        return Version(start.own, (start,), call, keys, keys[0].its_tower if keys else None)


def _joins_features(operation: Operation) -> bool:
    """Whether a concatenation is along features or samples, so that no tokens are added."""
    dim = operation.argument("dim", 0)
    values = [value for _, value in operation.carried()]
    axes = [(value, axis) for value in values for axis in (*(value.features or ()), value.samples)]
    return any(
        axis is not None and axis.dim(value.shape) == dim % len(value.shape) for value, axis in axes
    )


def _joined(operation: Operation, carried: Sequence[Versions]) -> Versions:
    """The stream that several streams become when they are concatenated before they attend."""
    versions = [version for some in carried for version in some]
    if not all(version.is_start for version in versions):
        return ()
    streams = dict.fromkeys(version.stream for version in versions)
    constant = any(o.value is None and o.size.numel() for o in operation.operands)
    if len(streams) == 1 and not constant:
        return ()
    return (Version(_together(streams, joined=True)),)


def _together(streams: Iterable[Stream], *, joined: bool = False) -> Stream:
    names = dict.fromkeys(name for stream in streams for name in stream.names)
    return Stream(names, streams, joined=joined)


def _of_tokens(operation: Operation, carried: Sequence[Versions]) -> Sequence[Versions]:
    """Returns what two added or multiplied signals carry, uniting features of the same tokens.

    A signal that is the same for all tokens of the other one, such as a condition, does not belong
    to these tokens. If both are broadcast, each token of one meets each token of the other.
    """
    output = operation.outputs[0]
    repeated = [
        output is None or _is_repeated(lengths(operand), output) or _holds_copies(value)
        for operand, value in operation.carried()
    ]
    if not any(repeated):
        _unite(carried)
    if all(repeated):
        return carried
    return [
        versions
        for versions, again in zip(carried, repeated, strict=True)
        if not again or any(not version.is_start for version in versions)
    ]


def _is_repeated(size: Sequence[int], output: Value) -> bool:
    """Whether an operand is broadcast along any dimension other than those of the features."""
    features = feature_dims(output)
    padded = [*[1] * (len(output.shape) - len(size)), *size]
    return any(
        length != whole and dim not in features
        for dim, (length, whole) in enumerate(zip(padded, output.shape, strict=True))
    )


def _holds_copies(value: Value) -> bool:
    """Whether a value holds several copies of each token, as ``repeat`` makes, for pairs."""
    while (operation := value.operation) is not None:
        sources = {source for _, source in operation.traced()}
        if len(sources) != 1 or operation.kind not in _KEEPS_TOKENS:
            return False
        (source,) = sources
        if operation.kind in MOVES and count_of_tokens(value) > count_of_tokens(source):
            return operation.kind is not Kind.PAD
        value = source
    return False


def _unite(carried: Iterable[Versions]) -> None:
    """Unites streams whose features were added before they attended: they are the same tokens.

    A value that carries several streams is not a token's feature; an example is the similarity of
    queries and keys.
    """
    starts = [versions[0] for versions in carried if len(versions) == 1 and versions[0].is_start]
    for other in starts[1:]:
        if not starts[0].stream.joined or not other.stream.joined:
            starts[0].stream.unite(other.stream)
