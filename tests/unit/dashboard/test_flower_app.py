"""Our tabs and templates inside Flower's."""

from __future__ import annotations

from pathlib import Path

import flower

from app.dashboard.flower_app import with_our_tabs

FLOWERS_NAVBAR = Path(flower.__file__).parent / "templates" / "navbar.html"


def test_the_installed_flower_takes_our_tabs_after_its_own():
    navbar = with_our_tabs(FLOWERS_NAVBAR.read_text())
    assert navbar.index(">Broker</a>") < navbar.index(">Hit rates</a>") < navbar.index(">Runs</a>")
    assert navbar.index(">Runs</a>") < navbar.index(">Queues</a>") < navbar.index(">Cost</a>")
    assert navbar.index(">Cost</a>") < navbar.index("theme-toggle")


def test_a_navbar_that_has_changed_is_left_as_it_is():
    assert with_our_tabs("<nav>other</nav>") == "<nav>other</nav>"
