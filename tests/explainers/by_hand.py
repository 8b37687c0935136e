"""A text, and its relevance by calling a method directly."""

import torch

from captum_transformer import AttnLRP

TEXT = "Anna Berg and Tom live in Paris ."
QUESTION = "who lives in Paris ?"


def by_hand(model, tokenizer, read, *texts, method=AttnLRP):
    """The relevance of tokens by the method itself, called as in Captum."""
    coded = tokenizer(*texts, return_tensors="pt")
    ids = coded.pop("input_ids")

    def forward(input_ids, **context):
        return read(model(input_ids=input_ids, **context))

    return method(forward).attribute(ids, additional_forward_kwargs=dict(coded))[0]


def output_of(model, tokenizer, *texts):
    """The output in evaluation mode."""
    mode = model.training
    with torch.no_grad():
        output = model.eval()(**tokenizer(*texts, return_tensors="pt"))
    model.train(mode)
    return output
