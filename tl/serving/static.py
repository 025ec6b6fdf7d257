"""The files of a page, with those that all pages share (`tl.pages`)."""

from __future__ import annotations

from pathlib import Path

from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from tl.pages import BASE

PAGES = Path(__file__).with_name("pages")


class PageFiles(StaticFiles):
    """The files of some folders, as if they were one; the first folder that has a name wins."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(directory=folders[0], html=True)
        self.all_directories = list(folders)


def mount_page(*folders: Path) -> Mount:
    """Return the route of a page, whose index.html is at /. `folders`: of the page, besides what all pages share."""
    return Mount("/", PageFiles(*folders, BASE))
