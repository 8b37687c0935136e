"""The arguments of the command line."""

import argparse
import sys
from collections.abc import Sequence

import captum_transformer
from captum_transformer.cli.names import FORMATS, METHODS
from captum_transformer.cli.values import hops, keyword, method, number, positive, scale

_NAME = "captum-transformer"


_DESCRIPTION = "Explains the decisions of Transformers: which pixels or words support a class."
_MODEL = """a model of timm (vit_base_patch16_224) or Hugging Face (google/vit-base-patch16-224), a
folder that save_pretrained or timm has written, or a file of weights (with --architecture)"""


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a command.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        What was said, with the name of the command as ``command``.
    """
    parser = argparse.ArgumentParser(
        _NAME,
        description=_DESCRIPTION,
        epilog=f"{_NAME} COMMAND --help lists the arguments of a command.",
    )
    parser.add_argument("--version", action="version", version=captum_transformer.__version__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=["explain", "inspect"],
        help="explain: pictures of why a model chose a class; inspect: how a model is read",
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    first = parser.parse_args(argv)
    if first.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    of_command = _explain() if first.command == "explain" else _inspect()
    of_command.set_defaults(command=first.command)
    # Not argparse's own commands: they allow no options between a model and its inputs.
    return of_command.parse_intermixed_args(first.rest)


def _explain() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"{_NAME} explain",
        usage="%(prog)s MODEL [INPUT ...] [options]; --help lists them",
        description="Draws which pixels or words of the inputs support a class, and which are "
        "evidence against it.",
    )
    _add_model(parser)
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="image files, texts in .txt files, or folders of them",
    )
    parser.add_argument(
        "--text",
        "--prompt",
        action="append",
        default=[],
        help="a text, or a language model's prompt; may be repeated",
    )
    parser.add_argument(
        "--pair",
        metavar="TEXT",
        help="the second text of a pair, such as the text that a question refers to",
    )
    parser.add_argument(
        "-c",
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="CLASS",
        help="a class to explain, by name or id; of models that find answers, classify words or "
        "fill in masks, an answer or a word; may be repeated (default: the most likely)",
    )
    parser.add_argument("--top", type=positive, help="explain this many of the most likely classes")
    parser.add_argument("--labels", metavar="FILE", help="the classes' names, one on each line")
    parser.add_argument(
        "-m",
        "--method",
        action="append",
        type=method,
        metavar="METHOD",
        help=f"{', '.join(METHODS)}; may be repeated (default: what suits the "
        "model and its input, which is said)",
    )
    _add_output(parser)
    _add_answer(parser)
    _add_preparation(parser)
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, xpu (default: auto)"
    )
    parser.add_argument(
        "--captured",
        action="store_true",
        help="repeat explanations of classifiers as graphs, which is faster for many small inputs "
        "of the same size",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="use random weights instead of trained ones, for tests",
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder, or one file for all inputs that ends in "
        + ", ".join(f".{name}" for name in FORMATS)
        + " (default: pictures in the current folder, texts in the terminal)",
    )
    parser.add_argument(
        "-f",
        "--format",
        action="append",
        choices=list(FORMATS),
        help="what to write into a folder; may be repeated (default: png)",
    )
    parser.add_argument(
        "--sign",
        choices=["auto", "signed", "positive", "absolute"],
        default="auto",
        help="which part of the relevance to show (default: all)",
    )
    parser.add_argument(
        "--scale",
        type=scale,
        help="the relevance with the strongest colour, to compare pictures (default: each its own)",
    )
    parser.add_argument(
        "--special-in-scale",
        action="store_true",
        help="let special tokens such as [CLS] set the scale of a text's colours, as words do",
    )
    parser.add_argument("--smooth", action="store_true", help="interpolate between patches")
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="show the relevance of each pixel of a picture (default: its sum for each patch)",
    )
    parser.add_argument("--tokens", action="store_true", help="show tokens, not words")
    parser.add_argument(
        "--by",
        choices=["word", "sentence", "line", "paragraph"],
        default="word",
        help="add up the relevance of a text by these (default: word)",
    )
    parser.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="in the terminal"
    )


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "pictures", "preprocessing, if the model was trained with other settings"
    )
    for name, said in (("mean", "is taken from"), ("std", "divides")):
        group.add_argument(
            f"--{name}",
            type=number if name == "mean" else scale,
            nargs="+",
            metavar="VALUE",
            help=f"what {said} the values from 0 to 1: one number, or one for each channel",
        )
    group.add_argument(
        "--size", type=positive, metavar="PIXELS", help="the height and width of the model's input"
    )
    group.add_argument(
        "--crop",
        action=argparse.BooleanOptionalAction,
        help="take the middle of a picture, or scale the whole of it to the size",
    )


def _add_answer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "language models", "why an answer follows a prompt: --text, --prompt, or a .txt file"
    )
    group.add_argument(
        "--answer", metavar="TEXT", help="the answer, which is appended to the prompt unchanged"
    )
    group.add_argument(
        "--generate", type=positive, default=0, metavar="N", help="have the model write N tokens"
    )
    group.add_argument(
        "--rather-than",
        metavar="TEXT",
        help="another answer: explains the first token in which the two differ",
    )
    group.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="TEXT",
        help="explain these words of the answer; may be repeated (default: the whole answer)",
    )
    group.add_argument(
        "--each", action="store_true", help="explain each token of the answer separately"
    )
    group.add_argument(
        "--hops",
        type=hops,
        default=0,
        metavar="N",
        help="pass relevance of the answer's tokens on to the tokens from which these were "
        "generated, N times, or with 'all' until it is on the prompt",
    )
    group.add_argument(
        "--chat", action="store_true", help="a prompt is what a user says, in the model's template"
    )


def _inspect() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        f"{_NAME} inspect",
        usage="%(prog)s MODEL [options]; --help lists them",
        description="Prints the attention and the residual connections that are seen in a model, "
        "and what of it can't be read. Weights are not loaded.",
    )
    _add_model(parser)
    parser.add_argument(
        "--length", type=positive, default=8, help="the number of tokens of the dummy text"
    )
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--architecture", metavar="NAME", help="timm's name of the architecture of a file's weights"
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which of several models in a file: the prefix of its weights' names, such as teacher",
    )
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="for models of timm that allow it"
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        action="extend",
        default=[],
        type=keyword,
        metavar="NAME=VALUE",
        help="what timm builds the model with, such as in_chans=1 depth=4",
    )
