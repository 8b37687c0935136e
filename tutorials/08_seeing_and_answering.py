# %% [markdown]
# # 8 Models that see and answer
#
# A vision-language model looks at a picture, reads a question and writes an answer: for each word
# of the answer, which part of the picture and which words of the question does it come from? Here
# a small LLaVA learns in a few seconds to say what is on the left and on the right, so we know
# the source of each word.
#
# Nothing is downloaded. For a trained LLaVA, Qwen-VL, InternVL, Gemma 3 or SmolVLM, use
# `AutoModelForImageTextToText.from_pretrained(...)` and `AutoProcessor.from_pretrained(...)`
# instead; everything below "The question" stays as it is.

# %%
import numpy as np
import torch
from IPython.display import display
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from captum_transformer import AttnLRP
from captum_transformer.chat import ChatExplainer

torch.manual_seed(0)
torch.set_num_threads(1)  # the model is so small that more threads mostly wait for each other

# %% [markdown]
# ## Pictures with a left and a right
#
# Each half has one disc, at a random position.

# %%
COLOURS = {"red": "#d93636", "green": "#33a64d", "blue": "#3359d9", "yellow": "#f2cc33"}
SIDES = ["left", "right"]
SIZE = 32


def scene(rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
    """A picture, and the colours of the discs in its left and in its right half."""
    picture = Image.new("RGB", (SIZE, SIZE), "#8c8c8c")
    draw = ImageDraw.Draw(picture)
    colours = [str(rng.choice(list(COLOURS))) for _ in SIDES]
    for side, colour in enumerate(colours):
        x = int(rng.integers(1, SIZE // 2 - 11)) + side * SIZE // 2
        y = int(rng.integers(1, SIZE - 11))
        draw.ellipse((x, y, x + 10, y + 10), fill=COLOURS[colour])
    return picture, colours


# %% [markdown]
# ## A small LLaVA and its processor

# %%
words = ["<pad>", "<s>", "</s>", "<image>", "user", "assistant", "what", "is", "there", "?"]
vocabulary = Tokenizer(
    models.WordLevel(
        {word: number for number, word in enumerate([*words, *SIDES, *COLOURS])},
        unk_token="<pad>",
    )
)
vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=vocabulary,
    pad_token="<pad>",
    eos_token="</s>",
    extra_special_tokens={"image_token": "<image>"},
)
processor = LlavaProcessor(
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
    tokenizer,
    patch_size=8,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    chat_template="{% for turn in messages %}{{ turn['role'] }} {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
)
sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
model = LlavaForConditionalGeneration(
    LlavaConfig(
        vision_config=CLIPVisionConfig(
            **sizes, hidden_size=64, image_size=SIZE, patch_size=8, initializer_range=0.1
        ),
        text_config=LlamaConfig(
            **sizes,
            hidden_size=64,
            initializer_range=0.1,
            vocab_size=len(tokenizer),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )
)

# Left and right are learned faster if positions are as large as what stands there.
torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight)


def asked(picture: Image.Image) -> dict:
    """What the processor makes of a conversation about a picture."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is there ?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


# %%
rng = np.random.default_rng(0)
examples = [scene(rng) for _ in range(3000)]
pixels = processor.image_processor(images=[p for p, _ in examples], return_tensors="pt")
pixels = pixels["pixel_values"]
prompt = asked(examples[0][0])["input_ids"]
answers = tokenizer(
    [f"left {left} right {right} </s>" for _, (left, right) in examples], return_tensors="pt"
)["input_ids"]

optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
model.train()
for _ in range(140):
    batch = torch.randint(len(examples), (48,))
    ids = torch.cat([prompt.expand(48, -1), answers[batch]], 1)
    logits = model(input_ids=ids, pixel_values=pixels[batch]).logits[:, -6:-1]
    loss = F.cross_entropy(logits.flatten(0, 1), answers[batch].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss at the end: {loss.item():.3f}")

# %% [markdown]
# ## The question
#
# What a user types: a conversation, the processor, `generate`, and the explainer. It takes the
# processor's output, the output of `generate`, and the original pictures.

# %%
explainer = ChatExplainer(model, processor, AttnLRP)

picture, colours = scene(rng)
inputs = asked(picture)
generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
answer = explainer(inputs, generated, [picture])
print(*answer.words)
for word in (1, 3):
    display(Image.fromarray(answer.picture(word)))

# %% [markdown]
# The picture of a word shows its relevance on the original picture, whatever the processor did to
# it, next to the words of the prompt. The numbers are in `answer.of_images` (a map for each
# word), `answer.of_prompt`, and by token in `answer.relevance`.
#
# ## Is it right?
#
# Each colour comes from one half. How much of the positive relevance is there?

# %%
right, inside = [], []
for _ in range(40):
    picture, colours = scene(rng)
    inputs = asked(picture)
    generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    answer = explainer(inputs, generated, [picture])
    right.append(answer.words[1:4:2] == colours)
    if right[-1] and colours[0] != colours[1]:
        for side, word in enumerate((1, 3)):
            halves = answer.of_images[0][word].clamp(min=0).chunk(2, 1)
            inside.append(halves[side].sum() / (halves[0].sum() + halves[1].sum()))
accuracy, share = float(np.mean(right)), float(torch.stack(inside).mean())
print(f"{accuracy:.0%} of the answers are right")
print(f"{share:.0%} of a colour's positive relevance is in its half")
assert accuracy > 0.9
assert share > 0.7
