"""The dashboard: what share of a core Flower takes while the API answers, with a page of each kind open."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import httpx
import psutil
from rig.dataset import entity_id, make_dataset
from rig.report import print_report
from rig.stack import Stack, free_port, http_ok, temporary_folder, wait_until

#: as an open page asks
REFRESH_S = 2.0
PAGES = ("hit-rates/data?window=24h", "runs/data", "queues/data")
COLUMNS = ("", "requests/s", "of a core")


def main() -> None:
    """Measure Flower without requests and pages, with requests, and with both."""
    options = _options()
    with temporary_folder() as folder, Stack(folder / "store", make_dataset(folder, options.rows)) as stack:
        port = free_port()
        with stack.settings_file.open("a") as settings:
            settings.write(f"[dashboard]\nport = {port}\n")
        stack.start_workers("gpu", "realtime", "maintenance")
        stack.batch_run()
        stack.start_api()
        flower = psutil.Process(stack.start("dashboard", sys.executable, "-P", "-m", "app.cli", "dashboard"))
        wait_until(lambda: http_ok(f"http://127.0.0.1:{port}/healthcheck"), "the dashboard")
        pages = Pages(f"http://127.0.0.1:{port}", stack.folder / ".forecache" / "dashboard.json")
        load = Load(stack.url, options.rows, options.rate)
        cases = {
            "nothing": (),
            "requests": (load.run,),
            "requests and pages": (load.run, pages.run),
        }
        shares = {name: asyncio.run(measure(flower, jobs, options)) for name, jobs in cases.items()}
    if load.wrong or pages.wrong:
        raise SystemExit(f"{load.wrong} requests and {pages.wrong} pages went wrong: no figure")
    rows = [(name, options.rate if "requests" in name else 0, share) for name, share in shares.items()]
    figures = {
        "rate": options.rate,
        "pages": len(PAGES),
        "share_idle": round(shares["nothing"], 3),
        "share_requests": round(shares["requests"], 3),
        "share_requests_and_pages": round(shares["requests and pages"], 3),
    }
    title = f"Flower's share of a core, {len(PAGES)} pages asking every {REFRESH_S:g} s"
    print_report(title, COLUMNS, rows, figures, as_json=options.json)


Job = Callable[[float], Awaitable[None]]


async def measure(flower: psutil.Process, jobs: tuple[Job, ...], options: argparse.Namespace) -> float:
    """Return the median over the rounds of the share of one core that the process takes, while the jobs run."""
    shares = []
    for _ in range(options.rounds):
        began, used = time.monotonic(), sum(flower.cpu_times()[:2])
        await asyncio.gather(asyncio.sleep(options.seconds), *(job(options.seconds) for job in jobs))
        shares.append((sum(flower.cpu_times()[:2]) - used) / (time.monotonic() - began))
    return median(shares)


class Load:
    """Predictions asked for at a steady rate, one in ten of them computed."""

    def __init__(self, url: str, rows: int, rate: int) -> None:
        self._url = url
        self._rows = rows
        self._rate = rate
        self.wrong = 0

    async def run(self, seconds: float) -> None:
        """Ask for so many seconds."""
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=self._url, timeout=httpx.Timeout(20, pool=None), limits=limits) as client:
            await asyncio.gather(*(self._ask(client, number) for number in range(int(self._rate * seconds))))

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        await asyncio.sleep(number / self._rate)
        terms = {"max_staleness_hours": 0} if number % 10 == 0 else {}
        answer = await client.get(f"/predict/{entity_id(number * 7919 % self._rows)}", params=terms)
        self.wrong += answer.status_code != 200


class Pages:
    """Open pages: each asks for its figures as its script does."""

    def __init__(self, url: str, credentials: Path) -> None:
        self._url = url
        self._credentials = credentials
        self.wrong = 0

    async def run(self, seconds: float) -> None:
        """Ask for so many seconds."""
        known = json.loads(self._credentials.read_text())
        auth = (known["username"], known["password"])
        async with httpx.AsyncClient(base_url=self._url, timeout=10, auth=auth) as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for page in PAGES:
                    self.wrong += (await client.get(f"/{page}")).status_code != 200
                await asyncio.sleep(REFRESH_S)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="entities of the model")
    parser.add_argument("--rate", type=int, default=200, help="predictions asked for in a second")
    parser.add_argument("--seconds", type=float, default=10, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case, of which the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
