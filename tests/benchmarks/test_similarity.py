"""The benchmark of pairs of words runs, and finds the planted one."""

import sys

from benchmarks import similarity


def test_a_row_for_each_way(monkeypatch, capsys):
    arguments = ["similarity", "--pairs", "40", "--seeds", "1", "--steps", "120"]
    monkeypatch.setattr(sys, "argv", arguments)
    similarity.main()

    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == list(similarity.METHODS)
    most = {row[0].strip(): float(row[1].split()[0]) for row in rows}
    assert most["BiLRP"] >= 95
    assert most["BiLRP"] > most["cosine of last hidden states"]
