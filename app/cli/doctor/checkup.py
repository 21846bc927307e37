"""Runs all checks at the same time. A check that fails or takes too long becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

from app.cli.doctor.findings import Check, Finding, Start, at_once, error, not_checked, warning
from app.cli.doctor.grpc_port import check_grpc_port
from app.cli.doctor.machine import (
    check_clock,
    check_environment,
    check_gpus,
    check_stop,
    check_tracing,
    check_versions,
    find_gpus,
)
from app.cli.doctor.models import StoredModel, check_fallbacks, check_model, check_shared_features
from app.cli.doctor.registered import check_registered, check_registry
from app.cli.doctor.runs import check_active_set, check_patience, check_run_engine, check_schedule
from app.cli.doctor.sentinels import check_sentinels
from app.cli.doctor.servers import PATIENCE, Failure, Server, ask_server, check_broker, check_servers
from app.cli.doctor.streams import check_stream, no_streams
from app.cli.doctor.tables import (
    TableSize,
    check_disk,
    check_table,
    filters_to_come,
    memory_finding,
    open_table,
    overlay_bytes,
    table_sizes,
)
from app.cli.doctor.workers import check_queues, check_workers, find_start
from inference.batch import RunState
from inference.batch.records import RunRecord
from inference.deployment import Deployment
from inference.economics.miss_capacity import miss_capacity
from inference.errors import ForecacheError, StoreUnavailable
from inference.failures import sentence_of
from inference.monitoring.presence import API_PROCESSES, LISTENERS, Roster
from inference.settings import ModelSettings, Settings
from inference.sources import Source

#: seconds for the servers to answer, then seconds for all checks
SERVERS_WITHIN_S = 3.0
CHECKS_WITHIN_S = 5.0
_RUNS = 50

Findings = Callable[[], list[Finding]]
#: the subject of a check, and a model's name or the subject's own
CheckName = tuple[Check, str]


def check_up(settings: Settings) -> list[Finding]:
    """Return all findings, in the order of `Check`. Takes under ten seconds even if no server answers."""
    urls = {"[redis] url": settings.redis_url, "[redis] cache_url": settings.cache_url}
    prefixes = dict.fromkeys(urls.values(), settings.redis.prefix) | {settings.cache_url: settings.redis.key_prefix}
    asks = {name: partial(ask_server, url, name, prefix=prefixes[url]) for name, url in urls.items()}
    answers = at_once(asks, SERVERS_WITHIN_S)
    silent = Failure(f"no answer within {SERVERS_WITHIN_S:g} s", "check its host name and the network")
    results, cache = (silent if isinstance(one, Exception) else one for one in answers.values())
    with Deployment(settings, PATIENCE) as deployment:
        checkup = Checkup(deployment, results, cache)
        findings = [*run_checks(checkup.checks(), CHECKS_WITHIN_S), checkup.memory()]
    order = list(Check)
    return sorted(findings, key=lambda finding: order.index(finding.check))


def run_checks(checks: Mapping[CheckName, Findings], within_s: float) -> list[Finding]:
    """Run the checks and return their findings. A check that raises or takes too long is itself a finding."""
    findings: list[Finding] = []
    for (check, subject), found in at_once(checks, within_s).items():
        if isinstance(found, TimeoutError):
            fix = "ask again when the cause, such as a slow network drive, is gone"
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
    """Gives each check its data. Data from the cache Redis is None if that does not answer."""

    def __init__(self, deployment: Deployment, results: Server | Failure, cache: Server | Failure) -> None:
        self._settings = deployment.settings
        self._results = results
        self._cache = cache
        #: None: Redis does not answer
        self._deployment = deployment if isinstance(cache, Server) else None
        #: model → the sizes of its tables, and the bytes of answers computed on demand and of filters to come
        self._sizes: dict[str, tuple[list[TableSize], float, float]] = {}

    def checks(self) -> dict[CheckName, Findings]:
        """Return the checks, with separate ones for each model."""
        whole: dict[Check, Findings] = {
            Check.VERSIONS: check_versions,
            Check.REDIS: lambda: check_servers(self._settings, self._results, self._cache),
            Check.BROKER: lambda: check_broker(self._settings, self._results),
            Check.WORKERS: self._workers,
            Check.GRPC: lambda: check_grpc_port(self._settings, self._api_processes()),
            Check.FALLBACK: lambda: check_fallbacks(self._settings),
            Check.MACHINE: self._machine,
        }
        checks: dict[CheckName, Findings] = {(check, check.value): call for check, call in whole.items()}
        checks[Check.REDIS, "Sentinels"] = lambda: check_sentinels(self._settings)
        checks[Check.WORKERS, "queues"] = self._queues
        if not self._settings.models:
            checks[Check.MODEL, "models"] = no_models
        for name, model in self._settings.models.items():
            checks[Check.MODEL, name] = partial(self._model, name, model)
            if model.registered is not None:
                checks[Check.MODEL, f"{name}, registry"] = partial(
                    check_registry, self._settings, name, model.registered
                )
            checks[Check.TABLE, name] = partial(self._table, name, model)
            checks[Check.SCHEDULE, name] = partial(self._schedule, name, model)
            checks[Check.SCHEDULE, f"{name}, engine"] = partial(check_run_engine, name, model)
            checks[Check.SCHEDULE, f"{name}, active set"] = partial(self._active_set, name, model)
            checks[Check.BROKER, f"chunks of {name}"] = partial(self._patience, name, model)
        if not self._settings.streams:
            checks[Check.STREAM, "streams"] = no_streams
        for name in self._settings.streams:
            checks[Check.STREAM, name] = partial(self._stream, name)
        return checks

    def memory(self) -> Finding:
        """Return the finding about Redis' memory, by the tables that were checked in time."""
        if not isinstance(self._cache, Server):
            return not_checked(Check.REDIS, "memory")
        known = list(self._sizes.values())
        sizes = [size for of_model, _, _ in known for size in of_model]
        overlay, filters = sum(one for _, one, _ in known), sum(one for _, _, one in known)
        return memory_finding(self._cache.info, sizes, overlay, filters)

    def _workers(self) -> list[Finding]:
        return check_workers(self._settings, self._rosters(), self._active(), start=self._start)

    def _queues(self) -> list[Finding]:
        rosters = self._rosters()
        # without Redis, `check_workers` reports that
        return [] if rosters is None else check_queues(self._settings, rosters, self._scored_now)

    def _scored_now(self) -> str | None:
        """Return a run with a chunk that is being scored now, or None."""
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
        registered = model.registered
        if registered is not None:
            registry = None if self._deployment is None else self._deployment.registry
            choice = None if registry is None else registry.choice(name, str(registered))
            findings = check_registered(name, registered, choice, self._known(name), start=self._start)
        else:
            findings = check_model(name, model, self._settings.model_folder(name), self._known(name), start=self._start)
        owner = model.features_of
        if owner is not None:
            findings.append(check_shared_features(name, owner, self._known(name), self._known(owner)))
        return findings

    def _table(self, name: str, model: ModelSettings) -> list[Finding]:
        """Check a table and its disk, and keep the table's size in Redis for `memory`."""
        known = self._known(name)
        record = known.record if known else None
        table = open_table(self._settings, name, model, record)
        rows = table.rows if isinstance(table, Source) else None
        if self._deployment:
            client, keys = self._deployment.cache, self._deployment.keys
            outputs = record.signature.outputs if record else ()
            sizes = table_sizes(client, keys, name, source_rows=rows, outputs=outputs)
            overlay = overlay_bytes(client, keys, name, model, rows)
            self._sizes[name] = sizes, overlay, filters_to_come(client, keys, name, model, rows)
        return [check_table(name, model, table, record), *check_disk(self._settings, name, model, rows, record)]

    def _schedule(self, name: str, model: ModelSettings) -> list[Finding]:
        return check_schedule(name, model, self._runs(name), start=self._start)

    def _active_set(self, name: str, model: ModelSettings) -> list[Finding]:
        """Compare the misses of a model's active set with its real-time workers."""
        if self._deployment is None or model.batch.rule.is_all:
            return []
        runs = [run for run in self._runs(name) or () if not run.is_partial and run.state is RunState.PUBLISHED]
        capacity = miss_capacity(model, self._deployment.measured(name))
        workers = len(self._deployment.presence.roster(model.realtime.queue).alive)
        return check_active_set(name, model, next(iter(runs), None), capacity, workers)

    def _stream(self, name: str) -> list[Finding]:
        if self._deployment is None:
            return check_stream(self._settings, name, None, None)
        listeners = self._deployment.presence.roster(LISTENERS)
        lag = self._deployment.stream_progress(name).lag()
        return check_stream(self._settings, name, listeners, lag, start=self._start)

    def _machine(self) -> list[Finding]:
        offset_s = self._cache.offset_s if isinstance(self._cache, Server) else None
        gpus = check_gpus(self._settings.workers, find_gpus())
        return [gpus, check_clock(offset_s), check_stop(self._settings.api), *check_environment(), *check_tracing()]

    @cached_property
    def _start(self) -> Start | None:
        return find_start(self._settings, [*filter(None, [self._api_processes()]), *(self._rosters() or {}).values()])

    def _known(self, model: str) -> StoredModel | None:
        if self._deployment is None:
            return None
        registry = self._deployment.registry
        return StoredModel(registry.versions(model), registry.pointer(model))

    def _active(self) -> dict[str, int | None]:
        if self._deployment is None:
            return {}
        registry = self._deployment.registry
        return {model: registry.active_version(model) for model in self._settings.models}

    def _runs(self, model: str) -> list[RunRecord] | None:
        return self._deployment.ledger.newest(model, _RUNS) if self._deployment else None

    def _api_processes(self) -> Roster | None:
        return self._deployment.presence.roster(API_PROCESSES) if self._deployment else None

    def _rosters(self) -> dict[str, Roster] | None:
        if self._deployment is None:
            return None
        presence = self._deployment.presence
        return {queue: presence.roster(queue) for queue in self._settings.queues}


def no_models() -> list[Finding]:
    """Return the finding about settings without a model."""
    return [error(Check.MODEL, "models", "none is configured", "add a [models.NAME] section to forecache.toml")]
