"""The scripts and styles of the tab. A WebUI loads them by itself; other hosts link to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from extension.api import PREFIX

ROOT = Path(__file__).resolve().parents[2]


def asset_files() -> dict[str, Path]:
    """By the name they are served under."""
    scripts = {path.name: path for path in sorted((ROOT / "javascript").glob("athanor*.js"))}
    return {**scripts, "style.css": ROOT / "style.css"}


LOCALIZATION = "localization.js"
_CHOOSE = """(function () {
  const all = %s, wanted = "%s";
  const spoken = wanted === "auto" ? (navigator.languages || [navigator.language]) : [wanted];
  const first = String(spoken[0] || "").replace("-", "_");
  const chosen = Object.keys(all).find((name) => name === first || name.split("_")[0] === first.split("_")[0]);
  window.localization = Object.assign({}, window.localization, chosen ? all[chosen] : {});
})();
"""


def localization_script(language: str = "auto") -> str:
    """Puts the texts of a language where the page looks for them, as WebUIs do; "auto" is the browser's own."""
    files = sorted((ROOT / "localizations").glob("*.json"))
    texts = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    safe = re.sub(r"[^\w-]", "", language)
    return _CHOOSE % (json.dumps(texts, ensure_ascii=False).replace("</", "<\\/"), safe)


def head(language: str = "auto") -> str:
    """Links to scripts and styles, for a page's <head>; each with its age, so that no old one is kept.

    Args:
        language: the language of the tab's texts, as `zh_CN`; "auto" is the browser's, "en" leaves them as they are.
    """
    links = [f'<script defer src="{PREFIX}/assets/{LOCALIZATION}?language={language}"></script>']
    for name, path in asset_files().items():
        address = f"{PREFIX}/assets/{name}?{int(path.stat().st_mtime)}"
        if name.endswith(".css"):
            links.append(f'<link rel="stylesheet" href="{address}">')
        else:
            links.append(f'<script defer src="{address}"></script>')
    return "".join(links)


def add_asset_routes(app: FastAPI) -> None:
    """Serves the scripts and styles; they hold nothing that is anybody's."""

    @app.get(f"{PREFIX}/assets/{{name}}", include_in_schema=False)
    def asset(name: str, language: str = "auto") -> Response:
        if name == LOCALIZATION:
            return Response(localization_script(language), media_type="text/javascript")
        path = asset_files().get(name)
        return FileResponse(path) if path else Response(status_code=404)
