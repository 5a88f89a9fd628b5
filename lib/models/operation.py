"""Operations that are computed faster than their papers write them, and the switch back to the definitions.

An operation is a file beside its network: `plain`, the definition, and below it the fast form under the same signature,

    @operation(plain)
    def block_attention(query, keys, values): ...

so that a network calls one name, and `with models.plain():` runs any network by the definitions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Form = TypeVar("Form", bound=Callable)

_BY_DEFINITION: ContextVar[bool] = ContextVar("by_definition", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Run every operation by its definition; for tests and benchmarks."""
    token = _BY_DEFINITION.set(True)
    try:
        yield
    finally:
        _BY_DEFINITION.reset(token)


def operation(definition: Callable) -> Callable[[Form], Form]:
    """Mark a function as the fast form of `definition`, which takes its place within `plain()`."""

    def decorate(fast: Form) -> Form:
        @functools.wraps(fast)
        def either(*args, **kwargs):
            return (definition if _BY_DEFINITION.get() else fast)(*args, **kwargs)

        return either  # type: ignore[return-value]

    return decorate
