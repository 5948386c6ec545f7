"""One thing that a thread makes while something else is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """A function of whole numbers whose next result may be made before it is asked for.

    At most one result exists, in memory alone; it is dropped if another one is asked for. The
    function is pure: whether its result was made ahead changes nothing but the time.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._coming: tuple[tuple[int, ...], Future[T]] | None = None

    def prepare(self, *numbers: int) -> None:
        """Begins to make a result, in a thread that ends with it."""
        thread = ThreadPoolExecutor(1)
        self._coming = (numbers, thread.submit(self._function, *numbers))
        thread.shutdown(wait=False)

    def take(self, *numbers: int) -> T:
        """Returns the result: waits for it, or makes it if it was not prepared.

        Raises:
          whatever the function raised.
        """
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == numbers:
            return coming[1].result()
        return self._function(*numbers)
