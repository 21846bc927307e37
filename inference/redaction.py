"""Takes passwords out of texts: those in URLs whoever wrote them, and those of the settings wherever they appear.

Drivers quote URLs, parts of them, or the password alone, decoded or not. So each secret of the settings is remembered
when it is read, and every error of ours and every line of a log goes through `without_secrets`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

HIDDEN = "***"
#: shorter ones, and those that are a plain word, stand in lines for other reasons too
_LEAST = 8
#: of a process that reads ever new settings, such as a test run
_MOST = 1000

#: what stands before the host: up to the last @ of the authority, or of a password with an unescaped slash in it
_USERINFO = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#]*@|[^\s/?#:@]*:(?!\d*(?:[/?#\s]|$))[^\s@]*@)",
)
_OPTION = re.compile(
    r"(?i)([?&;][\w.-]*(?:passw|pwd|token|secret|signature|credential|api[_-]?key|access[_-]?key|sig(?==))[\w.-]*=)"
    r"[^\s&;#'\"]+"
)

_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None


def remember_secret(text: str) -> None:
    """Have a secret, or the password of a URL, hidden in every text from here on, spelled as it is or %-encoded."""
    global _pattern
    scheme, _, rest = text.partition("://")
    userinfo, at, _ = rest.rpartition("@")
    found = userinfo.partition(":")[2] or userinfo if at else ("" if rest and scheme else text)
    new = {form for form in (found, unquote(found), quote(unquote(found), safe="")) if _is_telling(form)}
    if not new - _known.keys():
        return
    _known.update(dict.fromkeys(new))
    while len(_known) > _MOST:
        del _known[next(iter(_known))]
    # the longest first: one may be the beginning of another
    _pattern = re.compile("|".join(map(re.escape, sorted(_known, key=len, reverse=True))))


def without_secrets(text: str) -> str:
    """Return a text with every known secret hidden, and with user, password and secret options of each URL."""
    if "://" in text:
        text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
        if "=" in text:
            text = _OPTION.sub(rf"\1{HIDDEN}", text)
    return text if _pattern is None else _pattern.sub(HIDDEN, text)


def _is_telling(text: str) -> bool:
    return len(text) >= _LEAST and not (text.isalpha() and text.islower())
