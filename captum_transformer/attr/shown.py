"""Captum's progress bars, for what loops."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from captum._utils.progress import progress


@contextmanager
def progress_of(what: object, steps: int, *, show: bool) -> Iterator[Callable[[], object]]:
    """A progress bar, as Captum's methods show it.

    Args:
        what: whose loop it is, a method or an explainer.
        steps: how many steps there are.
        show: whether there is a bar.

    Yields:
        What is to be called after each step.
    """
    if not show:
        yield lambda: None
        return
    with closing(progress(desc=f"{type(what).__name__} attribution", total=steps)) as bar:
        bar.update(0)
        yield bar.update
