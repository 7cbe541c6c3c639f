"""What pages link to outside of docs/ goes into the site, so that links hold there as here."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HOUSE = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages name."""
    for file in tuple(files.documentation_pages()):
        for link in _LINK.findall(file.content_string):
            path = _outside(file.src_uri, link)
            if path is not None and files.get_file_from_path(_in_site(path)) is None:
                source = HOUSE / path
                if not source.is_file():
                    raise PluginError(f"{file.src_uri} links to {link}, which is no file.")
                files.append(File.generated(config, _in_site(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links that leave docs/ go to where the files stand in the site."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        path = _outside(here, link[0])
        return link[0] if path is None else relpath(_in_site(path), PurePosixPath(here).parent)

    return _LINK.sub(moved, markdown)


def _outside(page: str, link: str) -> str | None:
    """Return the path in the repository that a page's link goes to, where it leaves docs/."""
    path = normpath(PurePosixPath("docs", page).parent / link)
    return None if path.startswith("docs/") else path


def _in_site(path: str) -> str:
    return f"house/{path}"
