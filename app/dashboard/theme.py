"""Flower's templates with ours beside them, and our tabs in its navigation bar."""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

from app.dashboard.pages import PAGES
from inference.logs import get_logger

log = get_logger(__name__)

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
NAVBAR = "navbar.html"

# the end of Flower's last tab; the bar is patched rather than copied, so Flower's own changes come through
_LAST_TAB = ">Broker</a>\n        </li>\n"
_TAB = """\
        <li class="nav-item">
          <a class="nav-link{{% if active_tab == '{name}' %}} active{{% end %}}"
            href="{{{{ reverse_url('{name}') }}}}"
            {{% if active_tab == '{name}' %}}aria-current="page"{{% end %}}>{title}</a>
        </li>
"""


def with_our_tabs(navbar: str) -> str:
    """Return Flower's navigation bar with our tabs in it; unchanged, and logged, if it is not as known."""
    if _LAST_TAB not in navbar:
        log.warning("dashboard.no_tab", reason="Flower's navbar has changed: open /hit-rates by its address")
        return navbar
    tabs = "".join(_TAB.format(name=name, title=title) for name, title in PAGES.items())
    return navbar.replace(_LAST_TAB, _LAST_TAB + tabs, 1)


class Templates(Loader):
    """Loads our templates first, then Flower's."""

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATE_FOLDER / name
        text = (ours if ours.is_file() else Path(self.root) / name).read_text(encoding="utf-8")
        return Template(with_our_tabs(text) if name == NAVBAR else text, name=name, loader=self)
