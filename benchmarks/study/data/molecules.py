"""Molecules and reactions as SMILES, each token of them masked in turn."""

import re
from pathlib import Path

import torch
from torch import Tensor

# Everyday molecules (aspirin, caffeine, ibuprofen, ...) and textbook reactions.
SMILES = """
CC(=O)Oc1ccccc1C(=O)O
Cn1cnc2c1c(=O)n(C)c(=O)n2C
CC(C)Cc1ccc(cc1)C(C)C(=O)O
CC(=O)Nc1ccc(O)cc1
CN1CCCC1c1cccnc1
COc1cc(C=O)ccc1O
CC(C)(C)NCC(O)c1ccc(O)c(CO)c1
CCN(CC)CC(=O)Nc1c(C)cccc1C
OCC1OC(O)C(O)C(O)C1O
NCCc1ccc(O)c(O)c1
CC(=O)O.OCC>>CC(=O)OCC
OC(=O)c1ccccc1.CO>>COC(=O)c1ccccc1
CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1
OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(cc1)-c1ccncc1
CC(=O)OC(C)=O.Oc1ccccc1C(=O)O>>CC(=O)Oc1ccccc1C(=O)O
O=Cc1ccccc1.NCc1ccccc1>>C(=NCc1ccccc1)c1ccccc1
CCBr.Oc1ccccc1>>CCOc1ccccc1
O=[N+]([O-])c1ccccc1>>Nc1ccccc1
ClCc1ccccc1.C1CCNCC1>>C(c1ccccc1)N1CCCCC1
CC(C)(C)OC(=O)NCc1ccccc1>>NCc1ccccc1
""".split()
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d{2}|.")


def vocabulary(folder: Path) -> dict[str, int]:
    """The ids of tokens: the file's lines."""
    return {
        t: i for i, t in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    }


def masked(folder: Path, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Texts with one token masked each, evenly chosen from all that there could be.

    Returns:
        The ids of each text, where its mask is, and what was there.
    """
    ids = vocabulary(folder)
    texts, places, truth = [], [], []
    for smiles in SMILES:
        tokens = [ids.get(token, ids["[UNK]"]) for token in TOKEN.findall(smiles)]
        whole = torch.tensor([ids["[CLS]"], *tokens, ids["[SEP]"]])
        for place in range(1, len(whole) - 1):
            text = whole.clone()
            text[place] = ids["[MASK]"]
            texts.append(text)
            places.append(place)
            truth.append(int(whole[place]))
    chosen = torch.linspace(0, len(texts) - 1, min(count, len(texts))).long()
    return [texts[i] for i in chosen], torch.tensor(places)[chosen], torch.tensor(truth)[chosen]
