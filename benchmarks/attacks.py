"""What the worst requests do to hits: the slowest hit beside each attack, and how long the attack keeps the server."""

from __future__ import annotations

import argparse
import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.attacks import Attack, attacks
from rig.dataset import entity_id, make_dataset
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

#: between two hits: a client that waits for each answer, as a shop does
PAUSE_S = 0.001
#: hits are measured before an attack begins and after it is over
MARGIN_S = 0.1


@dataclass(frozen=True)
class Struck:
    """What one attack did. `status`: of its first answer; `answer_bytes`: of its largest."""

    attack: Attack
    hits: int
    worst_hit_ms: float
    took_ms: float
    status: int
    answer_bytes: int


def main() -> None:
    """Attack, measure and print."""
    options = _options()
    with temporary_folder() as folder:
        dataset = make_dataset(folder, options.rows)
        with Stack(folder, dataset) as stack:
            stack.start_workers("gpu", "maintenance", "realtime")
            stack.start_api()
            stack.batch_run()
            (tensor,) = stack.deployment.registry.active(MODEL).signature.inputs
            ask = Asker(stack, f"/predict/{entity_id(0)}")
            calm = strike(ask, Attack("nothing", "/health/live", b"", "GET"), options.at_once)
            chosen = [one for one in attacks(MODEL, tensor.name) if options.only in one.name]
            # neighbours on the machine slow hits too: the calmest round is nearest to the attack's own doing
            struck = [
                min((strike(ask, one, options.at_once) for _ in range(options.rounds)), key=lambda it: it.worst_hit_ms)
                for one in chosen
            ]
            stands = _stands(folder / "logs" / "api.log")
    print_report(
        f"Attacks, {options.at_once} at once, and hits beside them, one after the other",
        ["", "worst hit ms", "hits", "attacks took ms", "status", "bytes sent", "bytes answered"],
        [_row(one) for one in (calm, *struck)],
        _figures(calm, struck, stands),
        as_json=options.json,
    )


class Asker:
    """Asks the API of a stack."""

    def __init__(self, stack: Stack, hit: str) -> None:
        self._port = stack.api_port
        self._hit = hit

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """Yield a connection that is closed at the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            yield connection
        finally:
            connection.close()

    def send(self, attack: Attack) -> tuple[int, int]:
        """Send an attack; return the status and the size of its answer."""
        with self.connected() as connection:
            connection.request(attack.method, attack.path, attack.body or None, attack.all_headers)
            answer = connection.getresponse()
            return answer.status, len(answer.read())

    def hits_until(self, stop: threading.Event) -> list[float]:
        """Return how long each hit took, in milliseconds.

        Raises:
            SystemExit: one was no hit.
        """
        took: list[float] = []
        with self.connected() as connection:
            while not stop.is_set():
                began = time.perf_counter()
                connection.request("GET", self._hit)
                answer = connection.getresponse()
                body = answer.read()
                took.append((time.perf_counter() - began) * 1000)
                if answer.status != 200 or b'"cache_hit":true' not in body:
                    raise SystemExit(f"no hit: {answer.status} {body[:300]!r}")
                time.sleep(PAUSE_S)
        return took


def strike(ask: Asker, attack: Attack, at_once: int) -> Struck:
    """Send an attack several times at once, with hits beside it."""
    stop = threading.Event()
    with ThreadPoolExecutor(at_once + 1) as threads:
        hits = threads.submit(ask.hits_until, stop)
        time.sleep(MARGIN_S)
        began = time.perf_counter()
        answers = list(threads.map(ask.send, [attack] * at_once))
        took_ms = (time.perf_counter() - began) * 1000
        time.sleep(MARGIN_S)
        stop.set()
        took = hits.result()
    return Struck(attack, len(took), max(took), took_ms, answers[0][0], max(size for _, size in answers))


def _stands(log: Path) -> int:
    """Return how often the API's watchdog saw the event loop stand."""
    return log.read_text().count("loop.stands")


def _row(one: Struck) -> tuple[Any, ...]:
    sent = len(one.attack.body)
    return one.attack.name, one.worst_hit_ms, one.hits, one.took_ms, one.status, sent, one.answer_bytes


def _figures(calm: Struck, struck: list[Struck], stands: int) -> dict[str, Any]:
    worst = max(struck, key=lambda one: one.worst_hit_ms)
    return {
        "worst_hit_ms": round(worst.worst_hit_ms, 1),
        "worst_attack": worst.attack.name,
        "calm_worst_hit_ms": round(calm.worst_hit_ms, 1),
        "loop_stands": stands,
        "server_errors": [one.attack.name for one in struck if one.status >= 500],
        "by_attack": {one.attack.name: round(one.worst_hit_ms, 1) for one in struck},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=3, help="how often each attack is sent at the same time")
    parser.add_argument("--rounds", type=int, default=3, help="of each attack; the calmest counts")
    parser.add_argument("--only", default="", help="attacks whose names hold this")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
