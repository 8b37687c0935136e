"""The time of the callback is assigned to the functions that take it."""

import re

from benchmarks import monitor


def test_each_part_has_a_share(capsys):
    monitor.main(["--model", "test_vit", "--batch-size", "2", "--epochs", "2"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| ([^|\n]*[a-z]) \| (\d+)% \|$", printed, re.M)
    shares = {what: int(share) for what, share in rows}
    assert shares.keys() == monitor.PARTS.keys()
    assert shares["explain"] > 0
    assert sum(shares.values()) <= 105
