"""Removes passwords from texts: any password in a URL, and every secret of the settings wherever it appears.

Drivers quote URLs, parts of them, or the password alone, decoded or not. So each secret of the settings is remembered
when it is read, and all our errors and log lines pass through `without_secrets`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

HIDDEN = "***"
#: shorter secrets, and plain words, also occur in lines for other reasons
_LEAST = 8
#: most secrets remembered, for a process that keeps reading new settings, such as a test run
_MOST = 1000

#: user and password before the host: up to the last @, even if the password has an unescaped slash
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
    """Hide a secret, or a URL's password, in every text from now on, plain or %-encoded."""
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
    """Return a text without known secrets, and without each URL's user, password and secret options."""
    if "://" in text:
        text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
        if "=" in text:
            text = _OPTION.sub(rf"\1{HIDDEN}", text)
    return text if _pattern is None else _pattern.sub(HIDDEN, text)


def _is_telling(text: str) -> bool:
    return len(text) >= _LEAST and not (text.isalpha() and text.islower())
