"""Files beside docs/, such as README.md → pages of the documentation site (a hook of MkDocs).

Links are written for the repository. On the site, those that leave docs/ or enter it lead to the
page that the file has become.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/contest/README.md": "contest-example.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All files of docs/, the pages beside it, and what they link to that is not a page."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    for source in [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]:
        for target in LINK.findall((root / source).read_text()) if (root / source).exists() else ():
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            new = site_path(path, root)
            if (root / path).is_file() and files.get_file_from_path(new) is None:
                files.append(File.generated(config, new, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page with its links to files of the repository turned into links within the site."""
    root = Path(config.config_file_path).parent
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        here = posixpath.dirname(page.file.src_uri)
        return f"]({posixpath.relpath(site_path(path, root), here or '.')}"

    return LINK.sub(on_site, markdown)


def site_path(path: str, root: Path) -> str:
    """Where a file or folder of the repository is on the site."""
    if (root / path / "README.md").is_file():
        path = posixpath.join(path, "README.md")
    return PAGES.get(path, path.removeprefix("docs/"))
