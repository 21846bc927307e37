"""Path patterns: which names they match, in a time that grows with the name and never with how often a star repeats.

Python's regular expressions go back over a name for every star, and hold the interpreter meanwhile. Here all places of
a pattern that a name may have reached are followed at once, as the bits of one number.
"""

from __future__ import annotations

import os
import re

from inference.errors import SourceError, quoted

#: characters of a path, a pattern or a URI of a source
LONGEST_PATH = 4096
LONGEST_PATTERN = 1024
#: steps that are remembered of a pattern
_MAX_STEPS = 10_000

_MAGIC = re.compile(r"[*?\[]")
#: `deep` is `**/`, which spans no folder or several; `far` is `**`, which spans anything
_PIECE = re.compile(
    r"(?P<deep>\*\*/)|(?P<far>\*\*)|(?P<star>\*)|(?P<one>\?)|(?P<set>\[!?\]?[^]/]*\])|(?P<text>.)", re.DOTALL
)


def is_pattern(path: str) -> bool:
    """Whether a path stands for several files."""
    return _MAGIC.search(path) is not None


def check_path(path: str) -> None:
    """Refuse a path or pattern that no file system takes, or that is too long.

    Raises:
        SourceError: it says what is wrong.
    """
    longest = LONGEST_PATTERN if is_pattern(path) else LONGEST_PATH
    if len(path) > longest:
        raise SourceError(f"a source of {len(path)} characters is too long: at most {longest}", field="source")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(f"source {quoted(path)} is no valid Unicode", field="source") from error
    if "\0" in path:
        raise SourceError(f"source {quoted(path)} holds a NUL, which no path may", field="source")
    if is_pattern(path):
        PathPattern(path)


class PathPattern:
    """A pattern: `*` and `?` stay within one name, `**` spans folders, `[ab]` and `[!ab]` are sets.

    Raises:
        SourceError: a set has a range that goes backwards, such as `[z-a]`.
    """

    def __init__(self, pattern: str) -> None:
        # several stars say no more than two, and several `**/` no more than one
        plain = re.sub(r"(\*\*/)+", "**/", re.sub(r"\*{3,}", "**", pattern))
        #: what each name begins with, which needs no look at each character
        self._start = plain[: found.start()] if (found := _MAGIC.search(plain)) else plain
        self._sets: dict[int, re.Pattern[str]] = {}
        self._texts: dict[str, int] = {}
        self._steps: dict[tuple[int, str], int] = {}
        #: bits: places that any character but a slash passes, and only a slash
        self._within = self._slash = 0
        #: bits: places that stay where they are on any character, and on any but a slash
        self._far = self._star = 0
        #: bits: places that may be left out, with one more and with two more
        self._skip = self._skip_two = 0
        self._places = 0
        for piece in _PIECE.finditer(plain):
            self._add(piece, pattern)

    def _add(self, piece: re.Match[str], pattern: str) -> None:
        place = 1 << self._places
        self._places += 2 if piece["deep"] else 1
        if piece["deep"]:  # left out, or entered and left behind a slash
            self._skip |= place
            self._skip_two |= place
            self._far |= place << 1
            self._slash |= place << 1
        elif piece["far"] or piece["star"]:
            self._skip |= place
            self._far |= place if piece["far"] else 0
            self._star |= place if piece["star"] else 0
        elif piece["one"]:
            self._within |= place
        elif piece["set"]:
            self._sets[place] = _set(piece["set"], pattern)
        else:
            self._texts[piece["text"]] = self._texts.get(piece["text"], 0) | place

    def matches(self, name: str, *, below: bool = False) -> bool:
        """Whether the whole name matches; `below`: or a folder that the name lies in does."""
        if not name.startswith(self._start):
            return False
        reached, end, steps = self._with_skipped(1 << len(self._start)), 1 << self._places, self._steps
        for character in name[len(self._start) :]:
            if below and character == "/" and reached & end:
                return True
            following = steps.get((reached, character))
            reached = self._step(reached, character) if following is None else following
            if not reached:
                return False
        return bool(reached & end)

    def _step(self, reached: int, character: str) -> int:
        """Return the places that one character leads to, and remember them: names are much alike."""
        passes, stays = self._texts.get(character, 0), self._far
        if character == "/":
            passes |= self._slash
        else:
            passes |= self._within | sum(place for place, one in self._sets.items() if one.fullmatch(character))
            stays |= self._star
        following = self._with_skipped((reached & passes) << 1 | reached & stays)
        if len(self._steps) >= _MAX_STEPS:
            self._steps.clear()
        self._steps[reached, character] = following
        return following

    def _with_skipped(self, reached: int) -> int:
        while (more := reached | (reached & self._skip) << 1 | (reached & self._skip_two) << 2) != reached:
            reached = more
        return reached


def _set(text: str, pattern: str) -> re.Pattern[str]:
    """Return a set as an expression of one character."""
    is_not, chosen = text[1] == "!", text[2:-1] if text[1] == "!" else text[1:-1]
    for special in ("\\", "]", "^", "[", "&", "~", "|"):
        chosen = chosen.replace(special, f"\\{special}")
    try:
        return re.compile(f"[{'^' if is_not else ''}{chosen}]", re.DOTALL)
    except re.error as error:
        told = f"source {quoted(pattern)}: the set {quoted(text)} has a range that goes backwards"
        raise SourceError(told, field="source") from error
