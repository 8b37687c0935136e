# %% [markdown]
# # 4 Images and words: CLIP, LXMERT, DETR
#
# Three models that connect two things: a picture and its caption, regions and a question, a
# picture and the objects in it. Each is an unmodified class of Transformers, only small, and
# learns about coloured shapes in a few seconds. We draw these, so we know what the model should
# look at.
#
# Nothing is downloaded. For a trained model, use `CLIPModel.from_pretrained(...)` (and so on) and
# the output of its processor instead.

# %%
from collections.abc import Callable, Sequence

import numpy as np
import torch
from IPython.display import display
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import (
    CLIPConfig,
    CLIPModel,
    DetrConfig,
    DetrForObjectDetection,
    LxmertConfig,
    LxmertForQuestionAnswering,
    ResNetConfig,
)

from captum_transformer import AttnLRP, GenericAttentionRelevance
from captum_transformer.metrics import boxes_to_masks, energy_inside, pointing_game
from captum_transformer.visualization import detections, image_and_text, to_array, to_display

torch.manual_seed(0)
torch.set_num_threads(1)  # the models are so small that more threads mostly wait for each other

# %% [markdown]
# ## Data: coloured shapes
#
# A square, a disc and a triangle, each in a different quarter; some may be missing.

# %%
COLOURS = {
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.65, 0.3),
    "blue": (0.2, 0.35, 0.85),
    "yellow": (0.95, 0.8, 0.2),
}
SHAPES = ["square", "disc", "triangle"]
SIZE = 48
NOTHING = len(COLOURS)  # the colour of a shape that is missing


class Scenes:
    """Pictures with up to three shapes.

    Attributes:
        images: ``(B, 3, SIZE, SIZE)``, about from -2 to 2.
        boxes: ``(B, 3, 4)``: left, upper, right and lower end of the square, disc and triangle.
        colours: ``(B, 3)``, their colours.
        quarters: ``(B, 3)``, the quarter that each is in, row by row.
        right: ``(B, 3)``, whether it is in the right half.
    """

    def __init__(self, count: int, seed: int, *, fewest: int, most: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.quarters = torch.rand(count, 4, generator=g).argsort(1)[:, :3]
        self.right = self.quarters % 2 == 1
        shapes = torch.randint(fewest, most + 1, (count, 1), generator=g)
        shown = torch.rand(count, 3, generator=g).argsort(1) < shapes
        self.colours = torch.randint(NOTHING, (count, 3), generator=g)
        self.colours[~shown] = NOTHING

        radius = 7 + 3 * torch.rand(count, 3, 1, generator=g)
        corner = torch.stack([self.quarters % 2, self.quarters // 2], -1) * SIZE / 2
        centre = corner + radius
        centre += (SIZE / 2 - 2 * radius) * torch.rand(count, 3, 2, generator=g)
        self.boxes = torch.cat([centre - radius, centre + radius], -1)
        self.images = torch.rand(count, 3, SIZE, SIZE, generator=g) * 0.8
        palette = torch.tensor([*COLOURS.values(), (0.0, 0.0, 0.0)]) * 4 - 2.4
        for shape, inside in enumerate(self._drawn(centre, radius)):
            inside &= shown[:, shape, None, None]
            self.images += inside[:, None] * palette[self.colours[:, shape], :, None, None]

    @staticmethod
    def _drawn(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.arange(SIZE) + 0.5
        x = pixels - centre[..., 0, None, None]
        y = pixels[:, None] - centre[..., 1, None, None]
        r = radius[..., None]
        square = torch.maximum(x.abs(), y.abs()) < r
        disc = x**2 + y**2 < r**2
        triangle = (y.abs() < r) & (2 * x.abs() < y + r)
        return square[:, 0], disc[:, 1], triangle[:, 2]

    def first(self) -> Tensor:
        """The first shape of each scene that is there: ``(B,)``."""
        return (self.colours < NOTHING).int().argmax(1)

    def __len__(self) -> int:
        return len(self.images)


def trained(
    model: nn.Module,
    steps: int,
    loss_of_batch: Callable[[], Tensor],
    *,
    lr: float,
    also: Sequence[nn.Parameter] = (),
) -> None:
    """Trains a model, and leaves it in evaluation mode."""
    optimizer = torch.optim.AdamW([*model.parameters(), *also], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def show_beside(image: Tensor, picture: np.ndarray) -> None:
    """Shows an image, and beside it a picture that explains it."""
    side = len(picture)
    resized = Image.fromarray(to_display(image)).resize((side, side), Image.Resampling.NEAREST)
    display(Image.fromarray(np.hstack([np.asarray(resized), picture])))


def encoded(texts: list[str], words: list[str]) -> Tensor:
    """Token ids of texts with equally many words."""
    return torch.tensor([[words.index(word) for word in text.split()] for text in texts])


# %% [markdown]
# ## CLIP: a picture and a caption
#
# Two towers, and the product of what they return. There are eight captions; for each picture and
# each of them the model learns whether they fit.

# %%
CAPTIONS = [
    f"<s> a {colour} thing on the {side} </s>" for side in ("left", "right") for colour in COLOURS
]
WORDS = ["<s>", "</s>", "a", "thing", "on", "the", "left", "right", *COLOURS]
caption_ids = encoded(CAPTIONS, WORDS)

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
# CLIP's initial weights are small, for longer trainings than ours.
towers = {**sizes, "num_hidden_layers": 2, "initializer_factor": 1.5}
clip = CLIPModel(
    CLIPConfig(
        text_config={
            **towers, "vocab_size": len(WORDS), "max_position_embeddings": 8, "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**towers, "image_size": SIZE, "patch_size": 8},
        projection_dim=32,
        initializer_factor=1.5,
    )
)  # fmt: skip
for module in clip.modules():
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.3)


def fitting(scenes: Scenes) -> Tensor:
    """Whether each caption fits each picture: ``(pictures, captions)``."""
    number = scenes.colours + NOTHING * scenes.right
    fits = torch.zeros(len(scenes), len(CAPTIONS))
    for shape in range(3):
        there = scenes.colours[:, shape] < NOTHING
        fits[there, number[there, shape]] = 1
    return fits


scenes = Scenes(4000, seed=0, fewest=1, most=2)
fits = fitting(scenes)
threshold = nn.Parameter(torch.tensor(-2.0))


def clip_loss() -> Tensor:
    batch = torch.randint(len(scenes), (32,))
    similar = clip(pixel_values=scenes.images[batch], input_ids=caption_ids).logits_per_image
    return F.binary_cross_entropy_with_logits(similar + threshold, fits[batch])


trained(clip, 350, clip_loss, lr=3e-3, also=[threshold])

new = Scenes(100, seed=1, fewest=1, most=2)
with torch.no_grad():
    similar = clip(pixel_values=new.images, input_ids=caption_ids).logits_per_image
right = ((similar + threshold > 0) == (fitting(new) > 0)).float().mean()
print(f"{right:.1%} of the answers to new pictures are right")
assert right > 0.9

# %% [markdown]
# Any function can be explained, and inputs can be passed by name. With one score for each pair,
# the similarity of picture and caption, no target is needed; both towers get their relevance.


# %%
def similarity(**pair: Tensor) -> Tensor:
    return clip(**pair).logits_per_image.diagonal()


rows = torch.arange(len(new))
caption = (new.colours + NOTHING * new.right)[rows, new.first()]
pairs = {"pixel_values": new.images, "input_ids": caption_ids[caption]}

method = GenericAttentionRelevance(similarity)
relevance = method.attribute(pairs)
assert relevance["pixel_values"].shape == (100, 3, SIZE, SIZE)
assert relevance["input_ids"].shape == (100, 8)

# %% [markdown]
# The text's features are read from its last token, `</s>`, which keeps its own share through all
# skip connections. We want to know what it got from the others, so it is omitted from the
# picture.


# %%
def draw_pair(number: int) -> None:
    words = CAPTIONS[caption[number]].split()[:-1]
    why = image_and_text(
        new.images[number],
        relevance["pixel_values"][number],
        words,
        relevance["input_ids"][number, :-1],
        "Why do they fit?",
    )
    show_beside(new.images[number], why)


there = new.colours < NOTHING
on_both_sides = (there & new.right).any(1) & (there & ~new.right).any(1)
for number in on_both_sides.nonzero()[:2, 0].tolist():
    draw_pair(number)

# %% [markdown]
# Is it right? Each caption has one place in the picture, and two words of the caption count: the
# colour and the side.


# %%
def fitting_boxes(scenes: Scenes, colour: Tensor, right: Tensor) -> Tensor:
    """A mask of all shapes with the given colour in the given half."""
    fits = (scenes.colours == colour[:, None]) & (scenes.right == right[:, None])
    return boxes_to_masks(scenes.boxes * fits[..., None], (SIZE, SIZE))


mask = fitting_boxes(new, new.colours[rows, new.first()], new.right[rows, new.first()])
inside = energy_inside(relevance["pixel_values"], mask).mean()
print(f"in the picture, {inside:.0%} lies on the shape (chance: {mask.float().mean():.0%})")
assert inside > 0.35

places = ["<s>", "a", "(colour)", "thing", "on", "the", "(side)"]
of_words = relevance["input_ids"][:, :-1].mean(0)
print({place: round(value.item(), 3) for place, value in zip(places, of_words, strict=True)})
assert {places[n] for n in of_words.topk(2).indices} == {"(colour)", "(side)"}

# %% [markdown]
# To choose among fixed captions (zero-shot classification), explain the picture alone, with the
# captions as additional arguments. Then the target is the number of a caption, and
# `attribute_targets` explains several at once.

# %%
answers = GenericAttentionRelevance(lambda pixels, ids: clip(ids, pixels).logits_per_image)
left, other = answers.attribute_targets(new.images, [0, 4], caption_ids)  # red: left, right
assert left.shape == new.images.shape

# %% [markdown]
# ## LXMERT: regions and a question
#
# LXMERT reads a question, and regions that a detector has found: the features and the box of
# each. Here the features stand for a shape and its colour, with some noise.

# %%
WORDS = ["[CLS]", "[SEP]", "what", "colour", "side", "is", "the", "?", *SHAPES]
ANSWERS = [*COLOURS, "left", "right"]
codes = torch.randn(len(COLOURS) + len(SHAPES), 16, generator=torch.Generator().manual_seed(0))


class Questions:
    """A question about each scene, and its answer.

    Attributes:
        scenes: Pictures with three shapes each.
        inputs: What LXMERT reads.
        shape: Which shape is asked for, ``(B,)``.
        answers: The number of the answer, ``(B,)``.
        texts: The questions.
    """

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.scenes = scenes = Scenes(count, seed, fewest=3, most=3)
        self.shape = torch.randint(3, (count,), generator=g)
        of_side = torch.randint(2, (count,), generator=g)
        self.texts = [
            f"[CLS] what {('colour', 'side')[kind]} is the {SHAPES[shape]} ? [SEP]"
            for kind, shape in zip(of_side.tolist(), self.shape.tolist(), strict=True)
        ]
        rows = torch.arange(count)
        colour, right = scenes.colours[rows, self.shape], scenes.right[rows, self.shape]
        self.answers = torch.where(of_side == 1, NOTHING + right, colour)
        features = codes[: len(COLOURS)][scenes.colours] + codes[len(COLOURS) :]
        self.inputs = {
            "input_ids": encoded(self.texts, WORDS),
            "visual_feats": features + 0.3 * torch.randn(features.shape, generator=g),
            "visual_pos": scenes.boxes / SIZE,
        }


lxmert = LxmertForQuestionAnswering(
    LxmertConfig(
        **sizes, vocab_size=len(WORDS), max_position_embeddings=8, num_qa_labels=len(ANSWERS),
        visual_feat_dim=16, l_layers=1, r_layers=1, x_layers=1, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
)  # fmt: skip
asked = Questions(4000, seed=0)


def lxmert_loss() -> Tensor:
    batch = torch.randint(len(asked.texts), (64,))
    inputs = {name: tensor[batch] for name, tensor in asked.inputs.items()}
    scores = lxmert(**inputs).question_answering_score
    # Without smoothing the scores saturate, and gradients of saturated scores say little.
    return F.cross_entropy(scores, asked.answers[batch], label_smoothing=0.1)


trained(lxmert, 250, lxmert_loss, lr=1e-3)

new = Questions(100, seed=1)
with torch.no_grad():
    scores = lxmert(**new.inputs).question_answering_score
print(f"{(scores.argmax(1) == new.answers).float().mean():.1%} of the new answers are right")
assert (scores.argmax(1) == new.answers).float().mean() > 0.95

# %% [markdown]
# The features and the box of a region become one token, and each gets half of its relevance. The
# target is the answer. `attribute_tokens` returns one value for each word and each region.

# %%
method = GenericAttentionRelevance(lxmert)
relevance = method.attribute_tokens(new.inputs, target=new.answers)
of_regions = relevance["visual_feats"] + relevance["visual_pos"]
assert of_regions.shape == (100, 3)

# %% [markdown]
# For the picture, each region is painted with its relevance. `[CLS]`, where the answer is read,
# is left out.


# %%
def draw_answer(number: int) -> None:
    boxes = boxes_to_masks(new.scenes.boxes[number, :, None], (SIZE, SIZE))
    why = image_and_text(
        new.scenes.images[number],
        (boxes * of_regions[number, :, None, None]).sum(0),
        new.texts[number].split()[1:],
        relevance["input_ids"][number, 1:],
        f"Why {ANSWERS[new.answers[number]]}?",
    )
    show_beside(new.scenes.images[number], why)


draw_answer(int((new.answers < NOTHING).int().argmax()))  # the first question for a colour
draw_answer(int((new.answers >= NOTHING).int().argmax()))  # and for a side

# %%
found = pointing_game(of_regions, F.one_hot(new.shape, 3)).mean()
print(f"the most relevant region is the one that was asked for: {found:.0%} (chance: 33%)")
assert found > 0.8

of_words = relevance["input_ids"][:, 1:-1]
asking = of_words[:, [1, 4]].sum(1) / of_words.sum(1)  # "colour" or "side", and the shape
print(f"{asking.mean():.0%} of the words' relevance lies on the two that matter (chance: 33%)")

# %% [markdown]
# The regions are found; for the words it is less clear. With
# [cross-attention](../docs/cross_attention.md), there is a choice how relevance goes from regions
# to words: the default follows the paper.
#
# ## DETR: a picture and its objects
#
# DETR has learned queries; each returns a class and a box. To learn in seconds, ours doesn't
# match queries and objects: each query is assigned to a quarter. The class is the colour, and the
# last class is *no object*, as always in DETR.

# %%
detr = DetrForObjectDetection(
    DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
            out_features=["stage2"],
        ),
        d_model=64, num_queries=4, num_labels=len(COLOURS), encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, dropout=0.0,
    )
)  # fmt: skip
nn.init.normal_(detr.model.query_position_embeddings.weight)


def objects(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """The class and the box of each query, the box as DETR has it: centre and size as shares."""
    classes = torch.full((len(scenes), 4), NOTHING).scatter(1, scenes.quarters, scenes.colours)
    boxes = box_convert(scenes.boxes / SIZE, "xyxy", "cxcywh")
    places = scenes.quarters[..., None].expand(-1, -1, 4)
    return classes, torch.zeros(len(scenes), 4, 4).scatter(1, places, boxes)


scenes = Scenes(4000, seed=0, fewest=1, most=3)
classes, boxes = objects(scenes)


def detr_loss() -> Tensor:
    batch = torch.randint(len(scenes), (32,))
    found = detr(scenes.images[batch])
    there = classes[batch] < NOTHING
    of_classes = F.cross_entropy(found.logits.flatten(0, 1), classes[batch].flatten())
    return of_classes + 12 * F.l1_loss(found.pred_boxes[there], boxes[batch][there])


trained(detr, 350, detr_loss, lr=2e-3)

new = Scenes(100, seed=1, fewest=1, most=3)
classes, boxes = objects(new)
with torch.no_grad():
    found = detr(new.images)
print(f"{(found.logits.argmax(-1) == classes).float().mean():.1%} of the classes are right")
assert (found.logits.argmax(-1) == classes).float().mean() > 0.95

# %% [markdown]
# The target is a query and a class. `attribute_targets` explains all detections of a picture in
# one run of the model. `AttnLRP` goes through the backbone to the pixels, with signed values; the
# papers' maps of attention end at the backbone's grid of 6 x 6 features, and are spread over the
# corresponding pixels.

# %%
number = int((classes < NOTHING).sum(1).argmax())  # a picture with three objects
picture = new.images[number : number + 1]
queries = (found.logits[number].argmax(-1) < NOTHING).nonzero()[:, 0].tolist()
targets = [(query, int(found.logits[number, query].argmax())) for query in queries]
maps = AttnLRP(detr).attribute_targets(picture, targets)

colours = list(COLOURS)
figure = detections(
    picture[0],
    box_convert(found.pred_boxes[number, queries], "cxcywh", "xyxy") * SIZE,
    [pixels[0] for pixels in maps],
    [f"{colours[colour]}, query {query}" for query, colour in targets],
)
display(Image.fromarray(to_array(figure)))

# %%
query = (classes < NOTHING).int().argmax(1)  # one detection of each picture
rows = torch.arange(len(new))
targets = list(zip(query.tolist(), classes[rows, query].tolist(), strict=True))
corners = box_convert(boxes[rows, query], "cxcywh", "xyxy") * SIZE
mask = boxes_to_masks(corners, (SIZE, SIZE))

print(f"in the object's box (chance: {mask.float().mean():.0%}):")
for method in (
    AttnLRP(detr),
    GenericAttentionRelevance(detr, propagation="flow"),
    GenericAttentionRelevance(detr),
):
    inside = energy_inside(method.attribute(new.images, targets), mask).mean()
    print(f"{inside:.0%}  {type(method).__name__} {getattr(method, 'propagation', '')}")
    assert inside > 2 * mask.float().mean()

# %% [markdown]
# The box can be explained as well as the class: `AttnLRP(lambda images: detr(images).pred_boxes)`
# with the target `(query, 2)` asks for its width. [Models](../docs/models.md) shows what to type
# for more of them: VisualBERT, ViLT, BLIP, SigLIP.
