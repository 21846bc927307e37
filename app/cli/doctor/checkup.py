"""Asks every concern at once, and makes a finding even of a check that fails itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from app.cli.doctor.at_once import at_once
from app.cli.doctor.broker import check_broker, check_patience
from app.cli.doctor.fallbacks import check_fallbacks
from app.cli.doctor.findings import Check, Finding, error, not_checked, warning
from app.cli.doctor.machine import check_clock, check_environment, check_gpus, look_at_gpus
from app.cli.doctor.memory import TableSize, memory_finding, overlay_bytes, table_sizes
from app.cli.doctor.models import Known, check_model
from app.cli.doctor.queues import check_queues
from app.cli.doctor.redis_servers import PATIENCE, Failure, Server, check_servers, look_at
from app.cli.doctor.schedules import check_schedule
from app.cli.doctor.tables import check_disk, check_table, open_table
from app.cli.doctor.versions import check_versions
from app.cli.doctor.workers import check_workers
from inference.batch.records import RunRecord
from inference.deployment import Deployment
from inference.errors import ForecacheError, StoreUnavailable
from inference.failures import sentence_of
from inference.monitoring.presence import Roster
from inference.settings import ModelSettings, Settings
from inference.sources import Source

#: seconds for the servers to answer, and then for everything that is asked of them
SERVERS_WITHIN_S = 3.0
CHECKS_WITHIN_S = 5.0
_RUNS = 50

Findings = Callable[[], list[Finding]]
#: a concern, and whom it concerns: a model, or the concern's own name
Asked = tuple[Check, str]


def check_up(settings: Settings) -> list[Finding]:
    """Return all findings, in the order of the concerns. Takes under ten seconds whoever does not answer."""
    urls = {"[redis] url": settings.redis_url, "[redis] cache_url": settings.cache_url}
    prefix = settings.redis.prefix
    looks = {name: partial(look_at, url, name, prefix=prefix) for name, url in urls.items()}
    seen = at_once(looks, SERVERS_WITHIN_S)
    silent = Failure(f"no answer within {SERVERS_WITHIN_S:g} s", "check its host name and the network")
    results, cache = (silent if isinstance(one, Exception) else one for one in seen.values())
    with Deployment(settings, PATIENCE) as deployment:
        checkup = Checkup(deployment, results, cache)
        findings = [*run_checks(checkup.checks(), CHECKS_WITHIN_S), checkup.memory()]
    order = list(Check)
    return sorted(findings, key=lambda finding: order.index(finding.check))


def run_checks(checks: Mapping[Asked, Findings], within_s: float) -> list[Finding]:
    """Return what the checks found; one that raises or takes too long is a finding itself, and hides no other."""
    findings: list[Finding] = []
    for (check, subject), found in at_once(checks, within_s).items():
        if isinstance(found, TimeoutError):
            fix = "ask again when whatever it waits for, such as a network drive, is quicker"
            findings.append(warning(check, subject, f"not checked: it took over {within_s:g} s", fix))
        elif isinstance(found, StoreUnavailable):
            findings.append(not_checked(check, subject))
        elif isinstance(found, ForecacheError):
            findings.append(error(check, subject, found.message, "put it right, then ask again"))
        elif isinstance(found, Exception):
            fix = "look at what the error names; if nothing is wrong with it, report this"
            findings.append(error(check, subject, f"the check itself failed: {sentence_of(found)}", fix))
        else:
            findings.extend(found)
    return findings


class Checkup:
    """Gives each concern what it looks at. What comes from the cache Redis is None when that does not answer."""

    def __init__(self, deployment: Deployment, results: Server | Failure, cache: Server | Failure) -> None:
        self._settings = deployment.settings
        self._results = results
        self._cache = cache
        #: None: Redis does not answer
        self._deployment = deployment if isinstance(cache, Server) else None
        #: model → the sizes of its tables, and of what is computed on demand
        self._sizes: dict[str, tuple[list[TableSize], float]] = {}

    def checks(self) -> dict[Asked, Findings]:
        """Return the checks, those of models one by one; one may report under another concern's name as well."""
        whole: dict[Check, Findings] = {
            Check.VERSIONS: check_versions,
            Check.REDIS: lambda: check_servers(self._settings, self._results, self._cache),
            Check.BROKER: lambda: check_broker(self._settings, self._results),
            Check.WORKERS: lambda: check_workers(self._settings, self._rosters(), self._active()),
            Check.FALLBACK: lambda: check_fallbacks(self._settings),
            Check.MACHINE: self._machine,
        }
        checks: dict[Asked, Findings] = {(check, check.value): call for check, call in whole.items()}
        checks[Check.WORKERS, "queues"] = self._queues
        if not self._settings.models:
            checks[Check.MODEL, "models"] = _no_models
        for name, model in self._settings.models.items():
            checks[Check.MODEL, name] = partial(self._model, name, model)
            checks[Check.TABLE, name] = partial(self._table, name, model)
            checks[Check.SCHEDULE, name] = partial(self._schedule, name, model)
            checks[Check.BROKER, f"chunks of {name}"] = partial(self._patience, name, model)
        return checks

    def memory(self) -> Finding:
        """Return the line of Redis' memory, which hangs on the tables' rows: of those that were looked at by now."""
        if not isinstance(self._cache, Server):
            return not_checked(Check.REDIS, "memory")
        sizes = [size for own, _ in list(self._sizes.values()) for size in own]
        return memory_finding(self._cache.info, sizes, sum(overlay for _, overlay in list(self._sizes.values())))

    def _queues(self) -> list[Finding]:
        rosters = self._rosters()
        # without Redis `check_workers` says so
        return [] if rosters is None else check_queues(self._settings, rosters, self._scored_now)

    def _scored_now(self) -> str | None:
        """Return a run of which a worker holds a chunk at this moment."""
        if self._deployment is None:
            return None
        ledger = self._deployment.ledger
        active = [run_id for run_id in map(ledger.active_run, self._settings.models) if run_id]
        return next((run_id for run_id in active if ledger.chunk_states(run_id).scoring), None)

    def _patience(self, name: str, model: ModelSettings) -> list[Finding]:
        if not model.features:
            return []
        rosters = self._rosters()
        scorers = len(rosters["batch"].alive) if rosters else 0
        return check_patience(self._settings, name, self._runs(name), scorers)

    def _model(self, name: str, model: ModelSettings) -> list[Finding]:
        return check_model(name, model, self._settings.path(model.path), self._known(name))

    def _table(self, name: str, model: ModelSettings) -> list[Finding]:
        """Return the lines of a table and of its disk, and remember what its rows take in Redis."""
        known = self._known(name)
        record = known.record if known else None
        table = open_table(self._settings, name, model, record)
        rows = table.rows if isinstance(table, Source) else None
        if self._deployment:
            client, keys = self._deployment.cache, self._deployment.keys
            outputs = record.signature.outputs if record else ()
            sizes = table_sizes(client, keys, name, source_rows=rows, outputs=outputs)
            self._sizes[name] = sizes, overlay_bytes(client, keys, name, model, rows)
        return [check_table(name, model, table, record), *check_disk(self._settings, name, model, rows, record)]

    def _schedule(self, name: str, model: ModelSettings) -> list[Finding]:
        return check_schedule(name, model, self._runs(name))

    def _machine(self) -> list[Finding]:
        offset_s = self._cache.offset_s if isinstance(self._cache, Server) else None
        return [check_gpus(self._settings.workers, look_at_gpus()), check_clock(offset_s), *check_environment()]

    def _known(self, model: str) -> Known | None:
        if self._deployment is None:
            return None
        registry = self._deployment.registry
        return Known(registry.versions(model), registry.pointer(model))

    def _active(self) -> dict[str, int | None]:
        if self._deployment is None:
            return {}
        registry = self._deployment.registry
        return {model: registry.active_version(model) for model in self._settings.models}

    def _runs(self, model: str) -> list[RunRecord] | None:
        return self._deployment.ledger.newest(model, _RUNS) if self._deployment else None

    def _rosters(self) -> dict[str, Roster] | None:
        if self._deployment is None:
            return None
        presence = self._deployment.presence
        return {queue: presence.roster(queue) for queue in self._settings.queues}


def _no_models() -> list[Finding]:
    return [error(Check.MODEL, "models", "none is configured", "add a [models.NAME] section to forecache.toml")]
