"""The one exception that stands for a person's mistake.

Everything that a person can mend (a misspelt option, a missing file, a damaged picture) is raised as `InputError`
and printed as plain sentences; every other exception is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

_OUT_OF_MEMORY = re.compile(
    r"out of memory|out.of.(device|host).memory|(can't|cannot|unable to|failed to) allocate|bad_alloc|bad allocation"
    r"|MemoryError\b|\bENOMEM\b|not enough memory|memory did not suffice|paging file is too small"
    r"|STATUS_ALLOC_FAILED|_ALLOCATION_FAILED|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    # A library that gets no work space says only that it could not begin, or found no way to compute.
    r"|CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_NOT_INITIALIZED|unable to find a valid cuDNN algorithm",
    re.IGNORECASE,
)


class InputError(Exception):
    """One or several plain sentences, each naming the file or field and what to do about it."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: list[str] = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def tells_of_memory(text: str) -> bool:
    """Whether a message (of torch, of its libraries, or of the system) tells of memory that did not suffice."""
    return bool(_OUT_OF_MEMORY.search(text))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one that it was made of, means that memory did not suffice."""
    while error is not None:
        is_system = isinstance(error, OSError) and (
            error.errno == errno.ENOMEM or getattr(error, "winerror", 0) == 1455
        )
        if isinstance(error, MemoryError) or is_system or tells_of_memory(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__
    return False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean "rank"?` for the known name nearest to `word`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f' Did you mean "{near[0]}"?' if near else ""
