"""A hook of mkdocs: adds pages of the repository that live outside of docs/ to the site, and points links to them.

In the repository, links are plain relative paths. On the site, a link to one of these pages leads to its copy, and a
link to any other file outside of docs/, such as a study file, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Path in the repository -> path on the site.
PAGES = {
    "benchmarks/RESULTS.md": "explanation/results.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for home, place in PAGES.items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / home)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    homes = {site: home for home, site in PAGES.items()}
    home = homes.get(place, f"docs/{place}")

    def relink(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
        if file.startswith("docs/"):
            site = file.removeprefix("docs/")
        elif file in PAGES:
            site = PAGES[file]
        else:
            return text if (ROOT / file).exists() else link[0]
        return f"[{text}]({posixpath.relpath(site, posixpath.dirname(place) or '.')}{anchor})"

    return LINK.sub(relink, markdown)
