# %% [markdown]
# # 5 Language models and what they write
#
# For each word that a model has written: which words of the prompt does it come from? Here a
# small Llama learns in a few seconds to repeat a list of animals forwards or backwards, so we
# know where each word comes from.
#
# Nothing is downloaded. For a trained model, use `AutoModelForCausalLM.from_pretrained(...)` and
# the ids of its tokenizer instead.

# %%
from collections.abc import Callable

import torch
from IPython.display import display
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.visualization import to_array, token_matrix, token_strip

torch.manual_seed(0)
torch.set_num_threads(1)  # the models are so small that more threads mostly wait for each other

# %% [markdown]
# ## A language of lists

# %%
ANIMALS = "ant bee cat dog eel fox hen owl".split()
WORDS = ["<pad>", "<s>", "forwards", "backwards", ":", ".", *ANIMALS]
LENGTH = 4


def lists(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, what ought to follow, and for each animal its place in the prompt."""
    g = torch.Generator().manual_seed(seed)
    animals = torch.rand(count, len(ANIMALS), generator=g).argsort(1)[:, :LENGTH]
    animals += WORDS.index("ant")
    backwards = torch.randint(2, (count, 1), generator=g)
    colon, stop = (torch.full((count, 1), WORDS.index(word)) for word in ":.")
    prompts = torch.cat([WORDS.index("forwards") + backwards, animals, colon], 1)
    order = torch.arange(LENGTH)
    order = torch.where(backwards == 1, order.flip(0), order)
    return prompts, torch.cat([animals.gather(1, order), stop], 1), 1 + order


def text(ids: Tensor) -> list[str]:
    """The words of some ids."""
    return [WORDS[number] for number in ids]


prompts, answers, _ = lists(5000, seed=0)
print(*text(prompts[0]), "→", *text(answers[0]))


def trained(model: nn.Module, steps: int, loss_of_batch: Callable[[Tensor], Tensor]) -> None:
    """Trains a model, and leaves it in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(steps):
        loss = loss_of_batch(torch.randint(len(prompts), (64,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


# %% [markdown]
# ## A small Llama

# %%
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, pad_token_id=0,
        bos_token_id=1, eos_token_id=WORDS.index("."),
    )
)  # fmt: skip


def llama_loss(batch: Tensor) -> Tensor:
    whole = torch.cat([prompts[batch], answers[batch]], 1)
    logits = llama(whole[:, :-1]).logits[:, prompts.shape[1] - 1 :]
    return F.cross_entropy(logits.flatten(0, 1), answers[batch].flatten())


trained(llama, 200, llama_loss)

new, expected, places = lists(100, seed=1)
sequences = llama.generate(
    new, attention_mask=torch.ones_like(new), max_new_tokens=LENGTH + 1, do_sample=False
)
written = sequences[:, new.shape[1] :]
print(f"{(written == expected).all(1).float().mean():.0%} of the new lists are right")
assert (written == expected).all(1).float().mean() > 0.95

# %% [markdown]
# ## Why this word?
#
# The logits at a position are those of the next token, so a target is a position and a token.
# Here: why is that animal the first of the answer?

# %%
last = new.shape[1] - 1
first_word = AttnLRP(llama).attribute(new, target=[(last, int(word)) for word in written[:, 0]])
assert first_word.shape == new.shape

backwards = int((new[:, 0] == WORDS.index("backwards")).int().argmax())
for number in (backwards, int((new[:, 0] == WORDS.index("forwards")).int().argmax())):
    why = token_strip(text(new[number]), first_word[number], f"Why {WORDS[written[number, 0]]}?")
    display(Image.fromarray(why))

# %% [markdown]
# ## Why all these words?
#
# `attribute_generated` takes the prompt and the output of `generate`, and explains each generated
# token; the model runs once for all of them. There is one row for each generated word:

# %%
each = AttnLRP(llama).attribute_generated(new, sequences)
assert each.shape == (100, LENGTH + 1, new.shape[1])  # lists, generated tokens, prompt tokens

figure = token_matrix(each[backwards], rows=text(written[backwards]), columns=text(new[backwards]))
display(Image.fromarray(to_array(figure)))

# %% [markdown]
# The relevance runs from the upper right to the lower left, as *backwards* requires: the model
# has copied each word from its place. How often is that place the most relevant of all animals,
# and what share of the animals' positive relevance does it have?


# %%
def found(relevance: Tensor) -> tuple[Tensor, Tensor]:
    """How often the right animal is the most relevant one, and its share of the relevance."""
    animals = relevance[:, :LENGTH, 1 : 1 + LENGTH]
    right = (animals.argmax(2) + 1 == places).float().mean()
    positive = animals.clamp(min=0)
    share = positive.gather(2, places[..., None] - 1)[..., 0] / positive.sum(2)
    return right, share.mean()


right, share = found(each)
print(f"{right:.0%} right, {share:.0%} of the relevance (chance: {1 / LENGTH:.0%})")
assert right > 0.9
assert share > 0.7

# %% [markdown]
# ## Why this word, and not another?
#
# Much of a word's relevance would be the same for any other word. `rather_than` explains the
# difference of two logits: here to the word that the other instruction would have required. Now
# only the places of the two animals and the instruction should matter.

# %%
other = written[:, :LENGTH].flip(1)  # forwards instead of backwards, and the other way round
contrast = AttnLRP(llama).attribute_generated(new, sequences[:, :-1], rather_than=other)

rows = [f"{a}, not {b}" for a, b in zip(text(written[backwards]), text(other[backwards]))]  # noqa: B905
figure = token_matrix(contrast[backwards], rows=rows, columns=text(new[backwards]))
display(Image.fromarray(to_array(figure)))

# %%
right, share = found(contrast)
print(f"{right:.0%} right, {share:.0%} of the relevance")
assert right > 0.7

# %% [markdown]
# ## The answer's own words
#
# A model also reads what it has written. `include_generated=True` returns the relevance of
# everything before a word, and `spans` explains several words together, in one backward pass.
# Here: why the last two animals?

# %%
last_two = [(LENGTH - 2, LENGTH)]
direct = AttnLRP(llama).attribute_generated(new, sequences, spans=last_two, include_generated=True)[
    :, 0
]
everything = text(sequences[backwards])
caption = f"Why {' and '.join(text(written[backwards, LENGTH - 2 : LENGTH]))}?"
display(Image.fromarray(token_strip(everything, direct[backwards], caption)))

own = direct[:, new.shape[1] :].sum(1) / direct.sum(1)
print(f"{own.mean():.0%} of the relevance lies on what was written before")

# %% [markdown]
# With `hops`, that part is passed on to the words that *these* were generated from, until
# everything has reached the prompt. The sum stays the same.

# %%
reached = AttnLRP(llama).attribute_generated(
    new, sequences, spans=last_two, hops=None, include_generated=True
)[:, 0]
assert torch.allclose(reached.sum(1), direct.sum(1), atol=1e-3)
assert reached[:, new.shape[1] :].abs().max() < 1e-3
display(Image.fromarray(token_strip(everything, reached[backwards], caption + " With hops")))

# %% [markdown]
# ## An encoder and a decoder
#
# In BART or T5 the prompt is read by the encoder, and `generate` returns the decoder's tokens.
# Pass the name of the argument that takes them. The method here, `GenericAttentionRelevance`, has
# a rule for cross-attention.

# %%
bart = BartForConditionalGeneration(
    BartConfig(
        vocab_size=len(WORDS), d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, dropout=0.0, init_std=0.1, max_position_embeddings=16, pad_token_id=0,
        bos_token_id=1, decoder_start_token_id=1, eos_token_id=WORDS.index("."),
        forced_eos_token_id=None,
    )
)  # fmt: skip


def bart_loss(batch: Tensor) -> Tensor:
    given = F.pad(answers[batch, :-1], (1, 0), value=WORDS.index("<s>"))
    logits = bart(input_ids=prompts[batch], decoder_input_ids=given).logits
    return F.cross_entropy(logits.flatten(0, 1), answers[batch].flatten())


trained(bart, 150, bart_loss)

sequences = bart.generate(new, max_new_tokens=LENGTH + 1, do_sample=False)
written = sequences[:, 1:]
assert (written == expected).all(1).float().mean() > 0.95

relevance = GenericAttentionRelevance(bart).attribute_generated(
    {"input_ids": new}, sequences, generated_as="decoder_input_ids"
)["input_ids"]

shares = relevance / relevance.sum(2, keepdim=True)  # of each word that was written
figure = token_matrix(
    shares[backwards], rows=text(written[backwards]), columns=text(new[backwards])
)
display(Image.fromarray(to_array(figure)))

# %%
right, share = found(relevance)
print(f"{right:.0%} right, {share:.0%} of the relevance (chance: {1 / LENGTH:.0%})")
assert right > 0.8
assert share > 0.4

# %% [markdown]
# [Generated text](../docs/generated_text.md) covers batches with padding, image captions, and
# Captum's `LLMGradientAttribution`.
