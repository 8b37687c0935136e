"""The account of a call: which part of the relevance reached the inputs, and what took the rest."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_transformer.account import INPUTS, Account, Part, Reason, joined
from captum_transformer.attr.shown import progress_of
from captum_transformer.attr.transformer_method import START, TransformerMethod
from captum_transformer.calling.arguments import Arguments, Inputs
from captum_transformer.calling.isolation import in_full_precision, modules_of
from captum_transformer.calling.target import Target, target_of
from captum_transformer.calling.uncompiled import written_name
from captum_transformer.rules.ledger import Ledger, Taken, added_up
from captum_transformer.rules.relevance.totals import constants
from captum_transformer.trace.forward import TracedForward
from captum_transformer.trace.operation import Operation
from captum_transformer.trace.storages import memory_of


class AccountableMethod(TransformerMethod):
    """A method that can report where the relevance of a score goes."""

    def account(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        additional_forward_kwargs: Mapping[str, Any] | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Account:
        """Reports which part of the relevance reaches the inputs, and what gets the rest.

        Position embeddings, learned tokens, biases and masks are not inputs, so the part of the
        score that comes from them is missing from the attributions.

        The arguments are those of :meth:`attribute`.

        Returns:
            The account; ``print`` shows it as a table.

        Example:
            >>> import timm, torch
            >>> from captum_transformer import AttnLRP
            >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
            >>> account = AttnLRP(model).account(torch.rand(2, 3, 32, 32), target=3)
            >>> account.of("biases").shape
            torch.Size([2])
        """
        arguments = Arguments(inputs, additional_forward_args, additional_forward_kwargs)
        accounts, device = [], arguments.inputs[0].device
        steps = arguments.count(internal_batch_size)
        with progress_of(self, steps, show=show_progress) as step:
            for rows, batch in arguments.batches(internal_batch_size):
                chosen: Any = target_of(target, rows, arguments.samples)
                with self._traced(batch, account=True) as forward, in_full_precision(device):
                    accounts.append(self._account(forward, chosen))
                step()
        return joined(accounts)

    @abstractmethod
    def _account(self, forward: TracedForward, target: Any) -> Account:
        """Returns the account of the relevance of the target's score."""

    def _parts(self, taken: Iterable[Taken]) -> list[Part]:
        """Returns the amounts that were taken, added up by reason and source."""
        parameters = self._parameters()
        amounts: dict[tuple[str, str], list[Tensor]] = {}
        for operation, reason, amount in taken:
            source = _source(operation, reason, parameters)
            amounts.setdefault((reason.value, source), []).append(amount)
        return [Part(*key, added_up(of).detach()) for key, of in amounts.items()]

    def _parameters(self) -> dict[int, str]:
        """Returns the names of parameters and buffers by the keys of their memory."""
        found: dict[int, str] = {}
        for prefix, module in modules_of(self.forward_func):
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, tensor in own:
                name = written_name(f"{prefix}.{name}".lstrip("."))
                found |= dict.fromkeys(memory_of(tensor), name)
        return found

    def written_up(
        self, forward: TracedForward, ledger: Ledger, total: Tensor | None = None
    ) -> Account:
        """Returns the account of a pass along the tape that started with ``START``.

        Args:
            forward: the forward pass.
            ledger: the ledger of the pass.
            total: the relevance that is distributed; None for the sum of all parts, if the pass
                began with another amount.
        """
        names = dict(zip(forward.values, forward.names, strict=True))
        ends = [
            Part(INPUTS if value in names else Reason.ELSEWHERE.value, names.get(value, ""), amount)
            for value, amount in ledger.ended
        ]
        all_parts = (*ends, *self._parts(ledger.taken))
        parts = tuple(replace(part, amount=part.amount / START) for part in all_parts)
        whole = added_up([part.amount for part in parts]) if total is None else total
        return Account(type(self).__name__, whole, parts)


def _source(operation: Operation, reason: Reason, parameters: Mapping[int, str]) -> str:
    """Returns the names of parameters that were added or joined, or of operation and module."""
    named = [parameters.get(memory_of(o.given)[0]) for o in constants(operation)]
    if reason in (Reason.ADDED, Reason.JOINED, Reason.CONSTANT) and any(named):
        return ", ".join(name for name in named if name)
    return f"{operation.module} ({operation.name})" if operation.module else operation.name
