"""The tab's texts under the names that a WebUI's other files of the same language have.

A WebUI shows the files of all extensions that have the name which is chosen in its settings. Files of Chinese have
several names; whoever chose another one than ours would have an English tab in a Chinese page.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from extension.jobs.places import ROOT

_SAME = {"zh_CN": re.compile(r"(?i)(zh([-_ ]?(cn|sg|hans))?|chinese|简体|中文)(?![a-z])(?!.*(hant|[-_](tw|hk)))")}
"""By our file's name: how other files of this language are named ("zh-Hans (Stable)", "chinese-all-0620")."""


def share_languages(localizations: MutableMapping[str, list[str]]) -> None:
    """Adds our texts to the WebUI's own table of languages (name to files); what other files say comes after them.

    The WebUI makes the table anew when the list is refreshed, so this is called whenever its page is built.
    """
    for ours, is_same in _SAME.items():
        file = str(ROOT / "localizations" / f"{ours}.json")
        for name, files in localizations.items():
            if name != ours and is_same.match(name) and file not in files:
                files.insert(0, file)
