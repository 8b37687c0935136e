# %% [markdown]
# # 2 Text, with Transformers
#
# Which words made a classifier say *positive*? This tutorial trains a small BERT for a few
# seconds, on made-up film reviews that criticise one thing and praise another, and whose last
# word decides. So we know where the answer is, and what could distract from it.
#
# Nothing is downloaded. With your own trained model, skip to [Explain](#explain) and use
# `BertForSequenceClassification.from_pretrained(...)` and `AutoTokenizer.from_pretrained(...)`
# instead.

# %%
import random

import torch
from captum.attr import visualization
from IPython.display import HTML, display
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from captum_transformer import ConservativeLRP, Contrast, GenericAttentionRelevance
from captum_transformer.visualization import merge_words, token_html

random.seed(0)
torch.manual_seed(0)
torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other

# %% [markdown]
# ## Data and tokenizer
#
# A review that ends well is positive, whatever it says first.

# %%
TOPICS = ["story", "plot", "acting", "cast", "music", "soundtrack"]
GOOD = ["wonderful", "moving", "brilliant", "delightful", "unforgettable"]
BAD = ["awful", "boring", "forgettable", "dreadful", "tedious"]


def clause(topic: str, *, good: bool) -> str:
    """What a review says about one thing."""
    verb = random.choice(["is", "is really", "seems", "seems to be quite"])
    return f"the {topic} {verb} {random.choice(GOOD if good else BAD)}"


def review() -> tuple[str, int]:
    """A review, and whether it is positive."""
    first, last = random.sample(TOPICS, 2)
    positive = random.random() < 0.5
    # Two times in three the first clause says the opposite.
    beginning = clause(first, good=positive if random.random() < 1 / 3 else not positive)
    joint = random.choice([", but ", ", while ", "; yet "])
    return beginning + joint + clause(last, good=positive), int(positive)


corpus = [review() for _ in range(2000)]

pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
pieces.train_from_iterator(
    (text for text, _ in corpus),
    trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False),
)
pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=pieces, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
)
print(corpus[0])
print(tokenizer.convert_ids_to_tokens(tokenizer(corpus[0][0])["input_ids"]))

# %% [markdown]
# Some words are cut into pieces, as in real models.
#
# ## A small BERT


# %%
def encoded(samples: list[tuple[str, int]]) -> tuple[BatchEncoding, Tensor]:
    """The token ids and masks of reviews, and their labels."""
    texts, labels = zip(*samples, strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
    return batch, torch.tensor(labels)


model = BertForSequenceClassification(
    BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
)  # fmt: skip
inputs, labels = encoded(corpus)
optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=4 * 40)
for _ in range(4):
    for batch in torch.randperm(len(corpus)).split(50):
        logits = model(**{name: tensor[batch] for name, tensor in inputs.items()}).logits
        # Without smoothing the scores saturate, and gradients of saturated scores say little.
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

model.eval()
new, answers = encoded([review() for _ in range(300)])
with torch.no_grad():
    right = (model(**new).logits.argmax(1) == answers).float().mean()
print(f"{right:.1%} of the answers to new reviews are right")
assert right > 0.9

# %% [markdown]
# ## Explain
#
# Pass token ids as they are, and everything that isn't explained, such as the mask, by name. The
# relevance has one value for each token, which is zero for padding.

# %%
texts = [
    "the acting is really awful, but the soundtrack is brilliant",
    "the plot seems to be quite wonderful, while the cast is tedious",
]
batch = tokenizer(
    texts,
    padding=True,
    return_tensors="pt",
    return_token_type_ids=False,
    return_offsets_mapping=True,  # where each token stands in the text: for the pictures
)
ids, mask = batch["input_ids"], {"attention_mask": batch["attention_mask"]}

relevance = GenericAttentionRelevance(model).attribute(
    ids, target=[1, 0], additional_forward_kwargs=mask
)
assert relevance.shape == ids.shape
assert (relevance[batch["attention_mask"] == 0] == 0).all()

# %% [markdown]
# The score is read from `[CLS]`, which keeps its own share through all skip connections: nearly
# all of the relevance is there. We want to know what it got from the words, so the pictures omit
# the special tokens.


# %%
def draw(relevance: Tensor, captions: list[str]) -> None:
    """Draws the words of each text in the colours of their relevance, and not their pieces."""
    for number, (text, caption) in enumerate(zip(texts, captions, strict=True)):
        inside = ~torch.isin(ids[number], torch.tensor(tokenizer.all_special_ids))
        tokens = tokenizer.convert_ids_to_tokens(ids[number, inside])
        offsets = batch["offset_mapping"][number, inside]
        words, values = merge_words(tokens, relevance[number, inside], offsets, text)
        display(HTML(token_html(words, values, caption)))


draw(relevance, ["Why positive?", "Why negative?"])

# %% [markdown]
# ## For and against
#
# Maps of attention show how much a token *supports* a class. `ConservativeLRP` also shows
# evidence against it. Here it explains the contrast of *positive* and *negative*, and its values
# sum to the difference of the two scores, up to the contribution of biases.

# %%
versus = Contrast(1, rather_than=0)
signed = ConservativeLRP(model).attribute(ids, target=versus, additional_forward_kwargs=mask)
draw(signed, ["Why positive rather than negative?"] * 2)

# %% [markdown]
# ## In Captum's own pictures
#
# The result is a plain tensor, so any function for Captum's attributions can draw it.

# %%
with torch.no_grad():
    logits = model(ids, **mask).logits
records = [
    visualization.VisualizationDataRecord(
        word_attributions=values / values.abs().max(),
        pred_prob=scores.softmax(0).max().item(),
        pred_class=int(scores.argmax()),
        true_class=label,
        attr_class="positive",
        attr_score=values.sum().item(),
        raw_input_ids=tokenizer.convert_ids_to_tokens(row),
        convergence_score=(values.sum() - (scores[1] - scores[0])).item(),
    )
    for row, values, scores, label in zip(ids, signed, logits, [1, 0], strict=True)
]
page = visualization.visualize_text(records)

# %% [markdown]
# ## Does it find the word that counts?
#
# In each new review the last word decides. What share of the words' positive relevance do its
# tokens get?

# %%
ids, attention_mask = new["input_ids"], new["attention_mask"]
words = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
begins = torch.tensor(
    [[not token.startswith("##") for token in tokenizer.convert_ids_to_tokens(row)] for row in ids]
)
places = torch.arange(ids.shape[1])
last_word = (places * (begins & words)).amax(1)  # where it begins
decisive = words & (places >= last_word[:, None])

chance = (decisive.sum(1) / words.sum(1)).mean()
for method in (GenericAttentionRelevance(model), ConservativeLRP(model)):
    values = method.attribute(
        ids, target=answers, additional_forward_kwargs={"attention_mask": attention_mask}
    )
    positive = values.clamp(min=0) * words
    share = ((positive * decisive).sum(1) / positive.sum(1)).nan_to_num(0).mean()
    print(f"{type(method).__name__:<28}{share:.0%}  (chance: {chance:.0%})")
    assert share > 2 * chance

# %% [markdown]
# [Models](../docs/models.md) shows what to type for other families, and
# [Generated text](../docs/generated_text.md) how a language model's own words are explained.
