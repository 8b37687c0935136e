"""Measures peak memory and time of a language model's explanations with blocks that run again.

python -m benchmarks.checkpointing --layers 16 --width 512 --tokens 2048 --span 64

The model is like Llama, with random weights. What is explained is the sum of the logits of the last
tokens. Memory is beside the weights; memory and time are in multiples of those of the model's own
checkpointed forward and backward pass. The runs take turns, and a time is a median; with
`--turns 0` only memory is measured. Narrow models show how both grow with the text:

python -m benchmarks.checkpointing --layers 4 --width 32 --vocabulary 64 --checkpoint 1 --turns 1 \
    --methods AttnLRP GenericAttentionRelevance --tokens 4096 8192 16384

On a GPU, with the defaults of Llama-3.2-1B:

python -m benchmarks.checkpointing --device cuda --dtype bfloat16 --layers 16 --width 2048 \
    --heads 32 --kv-heads 8 --intermediate 8192 --vocabulary 128256 --tokens 2048
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

import captum_transformer
from benchmarks.cost.clock import Turns
from benchmarks.cost.memory import peak_bytes

METHODS = "LibraGrad ConservativeLRP AttnLRP GIM GenericAttentionRelevance TransformerAttribution"
REFERENCE = "forward + backward, checkpointed"


class Subject:
    """A model and the ids of a text, whose last tokens are explained."""

    def __init__(self, options: argparse.Namespace, tokens: int) -> None:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            num_key_value_heads=options.kv_heads,
            intermediate_size=options.intermediate or 4 * options.width,
            vocab_size=options.vocabulary,
            max_position_embeddings=tokens,
            use_cache=False,
            attn_implementation=options.attention,
        )
        self.device = torch.device(options.device)
        with torch.device("meta"):
            model: Any = transformers.LlamaForCausalLM(config)
        model = model.to(getattr(torch, options.dtype)).to_empty(device=self.device)
        for module in model.modules():
            if hasattr(module, "_init_weights"):
                module.apply(module._init_weights)  # noqa: SLF001 - there is no public name
                break
        # As nothing is trained, what a layer gets need not be kept for the gradient of its weights.
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.span = options.span
        self.ids = torch.randint(config.vocab_size, (1, tokens), device=self.device)

    def score(self, ids: Tensor | None, **named: Any) -> Tensor:
        """The sum of the logits of the last tokens, each read from the token before it."""
        logits = self.model(ids, logits_to_keep=self.span + 1, **named).logits[:, :-1]
        wanted = self.ids[:, -self.span :, None]
        summed: Tensor = logits.gather(-1, wanted).sum((1, 2))
        return summed

    def forward_and_backward(self, *, checkpointed: bool) -> None:
        """The model's own gradient at its embeddings."""
        embeddings = self.model.get_input_embeddings()(self.ids).requires_grad_()
        if checkpointed:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()  # there is no dropout, and it does not checkpoint in evaluation mode
        self.score(None, inputs_embeds=embeddings).sum().backward()
        self.model.gradient_checkpointing_disable()
        self.model.eval()


def runs(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is measured, by name; the reference first."""
    yield REFERENCE, partial(subject.forward_and_backward, checkpointed=True)
    if options.plain:
        yield "forward + backward", partial(subject.forward_and_backward, checkpointed=False)
    for name in options.methods:
        make = getattr(captum_transformer, name)
        for checkpoint in options.checkpoint:
            explain = make(subject.score, checkpoint=checkpoint).attribute
            yield f"{name}, checkpoint={checkpoint}", partial(explain, subject.ids)


def table(options: argparse.Namespace, tokens: int) -> Iterator[str]:
    """What is measured for a text of so many tokens, line by line."""
    subject = Subject(options, tokens)
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    yield f"\n{weights / 2**20:,.0f} MiB of weights, {tokens} tokens, {options.dtype}\n"
    timed = " seconds | ratio |" if options.turns else ""
    yield f"| run | MiB beside the weights | ratio |{timed}\n|---{'|--:' * (4 if timed else 2)}|"
    found = dict(runs(subject, options))
    turns = Turns(found, options.turns) if options.turns else None
    largest = 0.0
    for name, run in found.items():
        peak = peak_bytes(run, subject.device) / 2**20
        largest = largest or peak
        row = f"| {name} | {peak:,.0f} | {peak / largest:.2f} |"
        if turns is not None:
            row += f" {turns.median(name):.2f} | {turns.ratio(name, REFERENCE):.2f} |"
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each length of text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"layers": 16, "width": 256, "heads": 8, "kv-heads": 4, "intermediate": 0}
    for name, size in {**sizes, "vocabulary": 1024, "span": 64, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--methods", nargs="*", default=METHODS.split())
    parser.add_argument("--checkpoint", nargs="*", type=int, default=[0, 1])
    parser.add_argument(
        "--plain", action=argparse.BooleanOptionalAction, default=True, help="without checkpoints"
    )
    options = parser.parse_args(arguments)
    for tokens in options.tokens:
        for line in table(options, tokens):
            print(line, flush=True)


if __name__ == "__main__":
    main()
