"""Images in parallel: the order and the values do not depend on the number of processes."""

from __future__ import annotations

import math
import os
from functools import partial

import pytest

from lib.published_numbers.parallel import each


def test_results_keep_their_order_in_any_number_of_processes():
    jobs, said = [partial(math.pow, base, 2) for base in range(5)], []
    assert each(jobs, said.append, workers=1) == each(jobs, workers=2) == [0, 1, 4, 9, 16]
    assert said == [f"{n}/5 photographs" for n in range(1, 6)]


def test_one_worker_is_this_process_and_an_error_comes_through():
    assert each([os.getpid], workers=1) == [os.getpid()]
    with pytest.raises(ValueError, match="math domain"):
        each([partial(math.sqrt, -1)], workers=1)
    assert each([]) == []
