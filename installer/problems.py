"""The one exception for what stops a set-up, and the reading of pip's output into a sentence."""

from __future__ import annotations

import re

TAIL_LINES = 15


class SetupError(Exception):
    """One plain sentence for the person, and where there is some, the end of the output that explains it."""

    def __init__(self, sentence: str, tail: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.tail = tail


_CAUSES: tuple[tuple[str, str], ...] = (
    (r"No space left on device|Errno 28|not enough space on the disk", "the disk is full"),
    (r"Permission denied|Access is denied|Read-only file system|Errno 13|Errno 30", "a folder cannot be written"),
    (r"ProxyError|Tunnel connection failed", "the proxy refused the connection"),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError", "the package index's certificate was not accepted"),
    (
        r"NewConnectionError|Failed to establish a new connection|Temporary failure in name resolution|"
        r"Max retries exceeded|Network is unreachable|ConnectTimeout|ReadTimeout|Read timed out|getaddrinfo failed",
        "the package index could not be reached",
    ),
    (r"THESE PACKAGES DO NOT MATCH THE HASHES", "a downloaded package was damaged"),
)


def explain(output: str) -> str:
    """Why pip failed, as the end of a sentence."""
    for pattern, cause in _CAUSES:
        if re.search(pattern, output):
            return cause
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return f"the package index has no {missing.group(1)} for this Python on this system"
    return "pip gave the reason below"


def tail_of(output: str, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines that say something."""
    kept = [line.rstrip() for line in output.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
