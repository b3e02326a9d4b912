"""The long description and the addresses of a package: the README, whose relative links work only in a checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)\n*")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def make_absolute(text: str, repository: str) -> str:
    """Make the relative links of a text absolute; without a repository leave out pictures, and let links be text.

    :param repository: its address, e.g. that of its page.
    """
    if not repository:
        return _LINK.sub(r"\1", _PICTURE.sub("", text))
    text = _PICTURE.sub(rf"![\1]({repository}/raw/HEAD/\2)\n\n", text)
    return _LINK.sub(rf"[\1]({repository}/blob/HEAD/\2)", text)


class Metadata(MetadataHookInterface):
    """Adds the README and the addresses."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the long description, and the addresses if the owner wrote the repository's into pyproject.toml."""
        repository = str(self.config.get("repository", "")).rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": make_absolute(text, repository)}
        pages = {"Source": "", "Documentation": "/tree/HEAD/docs", "Changelog": "/blob/HEAD/CHANGELOG.md"}
        metadata["urls"] = {name: f"{repository}{path}" for name, path in pages.items()} if repository else {}
