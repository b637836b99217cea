"""Why a run ended, in sentences for the person who started it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from trainers.errors import tells_of_memory

TAIL_LINES = 40
_TAIL_BYTES = 32_768
_SMALLER = "Lower the resolution or the batch size, or turn gradient_checkpointing on; then resume the run."
_GPU_MEMORY = f"The graphics card's memory did not suffice. {_SMALLER}"
_MEMORY = f"The computer's memory did not suffice. {_SMALLER}"
_KILLED = "The system ended the trainer, which is what it does when the computer's memory runs out. Close other programs, or lower the resolution or the batch size; then resume the run."  # noqa: E501
_UNSEEN = "The trainer ended without a word (the computer was switched off, or it was killed). It can be resumed from its last state."  # noqa: E501
_WINDOWS = {0xC0000005: "by an access violation", 0xC0000017: "by no memory left", 0xC000012D: "by no memory left",
            0xC000013A: "by Ctrl-C", 0xC0000374: "by a damaged heap", 0xC00000FD: "by a stack overflow"}  # fmt: skip


def log_tail(log: Path, start: int = 0, lines: int = TAIL_LINES) -> list[str]:
    """The last lines that a trainer printed, from byte `start` of its log on."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    kept = [line.rpartition("\r")[2] if "\r" in line else line for line in text.splitlines()]
    return [line.rstrip() for line in kept if line.strip()][-lines:]


def is_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether these lines tell of memory that did not suffice."""
    return any(tells_of_memory(line) for line in lines)


def memory_sentence(lines: Sequence[str]) -> str:
    """What happened and what to do, where `lines` tell of memory that did not suffice; else empty."""
    if not is_out_of_memory(lines):
        return ""
    text = " ".join(lines)
    return _GPU_MEMORY if re.search(r"CUDA|CUBLAS|CUDNN|HIP|XPU|MPS", text) else _MEMORY


def _how(code: int) -> str:
    if code < 0:
        try:
            return f"by the signal {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    if code & 0xFFFFFFFF in _WINDOWS:
        return _WINDOWS[code & 0xFFFFFFFF]
    return f"with exit status {code}"


def interrupted(code: int | None, why: str, tail: Sequence[str]) -> list[str]:
    """Sentences on a process that ended without saying so itself.

    Args:
        code: its exit status, negative for a signal; None where nobody saw it.
        why: what is known besides, such as why it could not be started.
        tail: the last lines it printed.
    """
    if why:
        return [why]
    sentence = memory_sentence(tail)
    if sentence:
        return [sentence]
    if code is None:
        return [_UNSEEN]
    if code == -9 or code & 0xFFFFFFFF in (0xC0000017, 0xC000012D):
        return [f"The trainer was ended {_how(code)}.", _KILLED]
    return [f"The trainer ended unexpectedly, {_how(code)}."]
