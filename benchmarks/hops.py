"""Hops through generated reasoning to a known place of the prompt, on a small trained decoder.

A prompt lists pairs of a key and a value, and asks for a key. The model writes the key's value, and
then the value's partner, which it knows by heart: `a 3 b 7 c 1 ? b` is answered by `7 = x`, where x
is always the partner of 7. So the answer is made of the value that was written before it, and this
of the value in the prompt.

Run with ``python -m benchmarks.hops``; it takes a minute or two on one core.
"""

import argparse

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from captum_transformer import (
    GIM,
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    TransformerAttribution,
)

KEYS, VALUES, PAIRS = 8, 8, 4
ASK, IS = KEYS + 2 * VALUES, KEYS + 2 * VALUES + 1
SIZE = IS + 1

METHODS = {
    "AttnLRP": AttnLRP,
    "ConservativeLRP": ConservativeLRP,
    "GIM": GIM,
    "full LRP": lambda model: TransformerAttribution(model, propagate_to_input=True),
    "GenericAttentionRelevance": GenericAttentionRelevance,
    "TransformerAttribution": TransformerAttribution,
    "AttentionRollout": AttentionRollout,
}


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, what is to be written, and where in the prompt the value stands."""

    def shuffled(size: int) -> Tensor:
        return torch.rand(count, size, generator=generator).argsort(1)[:, :PAIRS]

    keys, values = shuffled(KEYS), shuffled(VALUES) + KEYS
    chosen = torch.randint(PAIRS, (count, 1), generator=generator)
    pairs = torch.stack([keys, values], 2).flatten(1)
    ask = torch.full((count, 1), ASK)
    prompts = torch.cat([pairs, ask, keys.gather(1, chosen)], 1)
    value = values.gather(1, chosen)
    # The partner is another one than that of the same number, so nothing can be copied.
    partner = (value - KEYS + 3) % VALUES + KEYS + VALUES
    answer = torch.cat([value, torch.full_like(value, IS), partner], 1)
    return prompts, answer, 2 * chosen[:, 0] + 1


def trained(steps: int, generator: torch.Generator) -> LlamaForCausalLM:
    """A decoder that has learned it."""
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.1,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(steps):
        prompts, answers, _ = drawn(128, generator)
        logits = model(torch.cat([prompts, answers[:, :-1]], 1)).logits[:, -3:]
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = trained(arguments.steps, generator)
    prompts, answers, places = drawn(arguments.samples, generator)
    sequences = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=3, do_sample=False
    )
    right = (sequences[:, -3:] == answers).all(1)
    prompts, sequences, places = prompts[right], sequences[right], places[right]
    length = prompts.shape[1]
    said = f"{float(right.float().mean()):.0%} of {arguments.samples} answers are right.\n"
    print(said)
    print("| method | hops | on generated | right value has most | its share |")
    print("|---|--:|--:|--:|--:|")
    for name, method in METHODS.items():
        for hops in (0, 1, None):
            found = method(model).attribute_generated(
                prompts, sequences, spans=[(2, 3)], hops=hops, include_generated=True
            )[:, 0]
            values = found[:, 1 : length - 2 : 2]  # the values of the prompt
            most = (values.argmax(1) == places // 2).float().mean()
            size = found.abs()
            share = size.gather(1, places[:, None])[:, 0] / size[:, :length].sum(1)
            left = size[:, length:].sum(1) / size.sum(1)
            print(
                f"| `{name}` | {'all' if hops is None else hops} | {float(left.mean()):.0%} | "
                f"{float(most):.0%} | {float(share.mean()):.0%} |"
            )


if __name__ == "__main__":
    main()
