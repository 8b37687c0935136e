"""What it costs to explain generated tokens: each by itself, as one span, and with a hop.

A Llama-like decoder of 4 layers with random weights reads 256 tokens and has generated 64. Times
are on one core, in units of one plain forward and backward pass of the model over the finished
sequence; the runs take turns, and a figure is the median of the ratios.

Run with ``python -m benchmarks.spans``; it takes some minutes.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.cost.clock import Turns
from captum_transformer import AttnLRP, ConservativeLRP, GenericAttentionRelevance

METHODS = (AttnLRP, ConservativeLRP, GenericAttentionRelevance)


def runs(width: int, prompt: int, generated: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the plain pass first."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=1000,
        max_position_embeddings=prompt + generated,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(config.vocab_size, (1, prompt + generated))

    def plain() -> None:
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=embeddings, logits_to_keep=generated + 1).logits[:, :-1]
        scores = logits.gather(-1, ids[:, prompt:, None]).sum()
        torch.autograd.grad(scores, embeddings)

    found: dict[str, Callable[[], Any]] = {"plain": plain}
    options = {"additional_forward_kwargs": {"logits_to_keep": generated + 1}}
    whole = {"spans": [(0, generated)], "include_generated": True}
    kinds = {"each": {}, "span": whole, "hop": {**whole, "hops": 1}}
    for make in METHODS:
        for kind, asked in kinds.items():
            explain = make(model).attribute_generated

            def run(explain: Any = explain, asked: Any = asked) -> None:
                explain(ids[:, :prompt], ids, **options, **asked)

            found[f"{make.__name__} {kind}"] = run
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, size in {"width": 256, "prompt": 256, "generated": 64, "turns": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = Turns(runs(options.width, options.prompt, options.generated), options.turns)
    print(f"| | each of the {options.generated} tokens | all of them as a span | with one hop |")
    print("|---|--:|--:|--:|")
    for make in METHODS:
        names = [f"{make.__name__} {kind}" for kind in ("each", "span", "hop")]
        of = [turns.ratio(name, "plain") for name in names]
        print(f"| `{make.__name__}` | " + " | ".join(f"{one:.1f}" for one in of) + " |")


if __name__ == "__main__":
    main()
