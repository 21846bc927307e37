"""Asks every concern at once, and makes a finding even of a check that fails itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import redis

from app.cli.doctor.at_once import at_once
from app.cli.doctor.broker import check_broker, check_patience
from app.cli.doctor.fallbacks import check_fallbacks
from app.cli.doctor.findings import Check, Finding, error, not_checked, warning
from app.cli.doctor.machine import check_clock, check_gpus, look_at_gpus
from app.cli.doctor.memory import TableSize, memory_finding, overlay_bytes, table_sizes
from app.cli.doctor.models import Known, check_model
from app.cli.doctor.redis_servers import Failure, Server, check_servers, look_at, open_client
from app.cli.doctor.schedules import check_schedule
from app.cli.doctor.tables import check_disk, check_table, open_table
from app.cli.doctor.versions import check_versions
from app.cli.doctor.workers import check_workers
from inference.batch.ledger import Ledger
from inference.batch.records import RunRecord
from inference.errors import StoreUnavailable
from inference.keys import Keys
from inference.models import ModelRegistry
from inference.presence import Presence, Roster
from inference.settings import Settings
from inference.sources import Source

#: seconds for the servers to answer, and then for everything that is asked of them
SERVERS_WITHIN_S = 3.0
CHECKS_WITHIN_S = 5.0
_RUNS = 50

Findings = Callable[[], list[Finding]]


def check_up(settings: Settings) -> list[Finding]:
    """Return all findings, in the order of the concerns. Takes under ten seconds whoever does not answer."""
    urls = {"[redis] url": settings.redis_url, "[redis] cache_url": settings.cache_url}
    seen = at_once({name: partial(look_at, url, name) for name, url in urls.items()}, SERVERS_WITHIN_S)
    silent = Failure(f"no answer within {SERVERS_WITHIN_S:g} s", "check its host name and the network")
    results, cache = (silent if isinstance(one, Exception) else one for one in seen.values())
    findings = run_checks(Deployment(settings, results, cache).checks(), CHECKS_WITHIN_S)
    order = list(Check)
    return sorted(findings, key=lambda finding: order.index(finding.check))


def run_checks(checks: Mapping[Check, Findings], within_s: float) -> list[Finding]:
    """Return what the checks found; one that raises or takes too long is a finding itself."""
    findings: list[Finding] = []
    for check, found in at_once(checks, within_s).items():
        if isinstance(found, TimeoutError):
            fix = "ask again when whatever it waits for, such as a network drive, is quicker"
            findings.append(warning(check, check.value, f"not checked: it took over {within_s:g} s", fix))
        elif isinstance(found, StoreUnavailable | redis.RedisError):
            findings.append(not_checked(check, check.value))
        elif isinstance(found, Exception):
            # the type only: the text of an error that nobody foresaw may hold anything
            fix = "report this, with what is special about this deployment"
            findings.append(error(check, check.value, f"the check itself failed ({type(found).__name__})", fix))
        else:
            findings.extend(found)
    return findings


class Deployment:
    """Gives each concern what it looks at. What comes from the cache Redis is None when that does not answer."""

    def __init__(self, settings: Settings, results: Server | Failure, cache: Server | Failure) -> None:
        self._settings = settings
        self._results = results
        self._cache = cache
        self._keys = Keys(settings.redis.prefix)
        self._client = open_client(settings.cache_url) if isinstance(cache, Server) else None

    def checks(self) -> dict[Check, Findings]:
        """Return the checks by the concern that answers for them; one may report under another's name as well."""
        return {
            Check.VERSIONS: check_versions,
            Check.REDIS: lambda: check_servers(self._settings, self._results, self._cache),
            Check.BROKER: self._broker,
            Check.WORKERS: lambda: check_workers(self._settings, self._rosters(), self._active()),
            Check.MODEL: self._models,
            Check.TABLE: self._tables,
            Check.FALLBACK: lambda: check_fallbacks(self._settings),
            Check.SCHEDULE: self._schedules,
            Check.MACHINE: self._machine,
        }

    def _broker(self) -> list[Finding]:
        lines = check_broker(self._settings, self._results)
        rosters = self._rosters()
        scorers = len(rosters["batch"].alive) if rosters else 0
        for name, model in self._settings.models.items():
            if model.features:
                lines.extend(check_patience(self._settings, name, self._runs(name), scorers))
        return lines

    def _models(self) -> list[Finding]:
        models = self._settings.models.items()
        if not models:
            return [error(Check.MODEL, "models", "none is configured", "add a [models.NAME] section to forecache.toml")]
        checked = [check_model(name, one, self._settings.path(one.path), self._known(name)) for name, one in models]
        return [line for lines in checked for line in lines]

    def _tables(self) -> list[Finding]:
        """Return the lines of tables and disks, and that of Redis' memory, which hangs on the tables' rows."""
        lines: list[Finding] = []
        sizes: list[TableSize] = []
        overlay = 0.0
        for name, model in self._settings.models.items():
            known = self._known(name)
            record = known.record if known else None
            table = open_table(self._settings, name, model, record)
            rows = table.rows if isinstance(table, Source) else None
            lines.append(check_table(name, table, record))
            lines.extend(check_disk(self._settings, name, model, rows, record))
            if self._client:
                outputs = record.signature.outputs if record else ()
                sizes.extend(table_sizes(self._client, self._keys, name, source_rows=rows, outputs=outputs))
                overlay += overlay_bytes(self._client, self._keys, name, model, rows)
        if isinstance(self._cache, Server):
            return [*lines, memory_finding(self._cache.info, sizes, overlay)]
        return [*lines, not_checked(Check.REDIS, "memory")]

    def _schedules(self) -> list[Finding]:
        checked = [check_schedule(name, one, self._runs(name)) for name, one in self._settings.models.items()]
        return [line for lines in checked for line in lines]

    def _machine(self) -> list[Finding]:
        offset_s = self._cache.offset_s if isinstance(self._cache, Server) else None
        return [check_gpus(self._settings.workers, look_at_gpus()), check_clock(offset_s)]

    def _known(self, model: str) -> Known | None:
        if self._client is None:
            return None
        registry = ModelRegistry(self._client, self._keys)
        return Known(registry.versions(model), registry.pointer(model))

    def _active(self) -> dict[str, int | None]:
        known = {model: self._known(model) for model in self._settings.models}
        return {model: one.pointer.active_version for model, one in known.items() if one}

    def _runs(self, model: str) -> list[RunRecord] | None:
        return Ledger(self._client, self._keys).newest(model, _RUNS) if self._client else None

    def _rosters(self) -> dict[str, Roster] | None:
        if self._client is None:
            return None
        presence = Presence(self._client, self._keys)
        return {queue: presence.roster(queue) for queue in self._settings.queues}
