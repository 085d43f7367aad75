"""Random generators of modules that the parent has loaded: numpy's, or a stand-in of that name where numpy is
missing.
"""

from __future__ import annotations

import random
import sys
import types

try:
    import numpy.random as numpy_random
except ImportError:
    numpy_random = types.ModuleType("numpy.random")
    _generator = random.Random(1)
    numpy_random.random = _generator.random  # type: ignore[attr-defined]
    numpy_random.seed = lambda number: _generator.seed(repr(number))  # type: ignore[attr-defined]
    sys.modules["numpy.random"] = numpy_random

numpy_random.seed(3)


def draw() -> list[float]:
    """Return two numbers."""
    return [float(numpy_random.random()) for _ in range(2)]


def seed(number: int) -> None:
    """Decide the numbers that follow."""
    numpy_random.seed(number)
