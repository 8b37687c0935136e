"""What a model's own file reads by the name of this one."""

SCALE = 1.0
OPTIONS = {"scale": 1.0}


class Settings:
    scale = 1.0


def doubled() -> float:
    return 2 * SCALE
