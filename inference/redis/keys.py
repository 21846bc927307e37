"""Every Redis key of Forecache is spelled here and nowhere else.

All live in `cache_url`, which must not evict, and start with the deployment prefix `P`. `T` is a table:
`p:<model>` (predictions of a model) or `f:<model>` (its features). `M` is a model, `R` a run, `J` a job, `W` a worker.

| key              | type   | fields or value                          | lives                 | written by            |
|------------------|--------|------------------------------------------|-----------------------|-----------------------|
| P:T:pointer      | hash   | current, previous (generations);         | for good              | publish, rollback,    |
|                  |        | version (active), held (versions,        |                       | activation scripts;   |
|                  |        | comma between); incarnation (random);    |                       | label script; begin   |
|                  |        | labels (name=version, comma between);    |                       |                       |
|                  |        | canary_share (0 to 1)                    |                       |                       |
| P:T:seq          | string | last generation number given out         | for good              | INCR                  |
| P:T:gens         | zset   | number, scored by creation time          | until collected       | begin, collection     |
| P:T:g:N          | hash   | state; manifest (JSON); model version;   | until collected       | begin, publish, …     |
|                  |        | sweep_due_at (epoch s)                   |                       |                       |
| P:T:g:N:B        | hash   | id → packed value + as_of                | manifest's deadline   | batch workers         |
| P:T:o:ID         | string | header + packed value; or a header alone | the entry's `keep`    | real-time workers,    |
|                  |        | that says features changed since         |                       | updates of features   |
| P:T:u:GROUP:…    |        | as P:T:o:ID and P:T:schemas, of one feature group of several; written by updates  |
| P:T:schemas      | hash   | digest → fields of overlay values (JSON) | for good              | upsert script         |
| P:m:M:record     | hash   | version → version record (JSON)          | for good              | inspect, workers      |
| P:m:M:micro      | hash   | version:device → rows per call (JSON)    | for good              | batch workers         |
| P:m:M:loads      | hash   | version, host, pid → loads that began    | 30 days unchanged     | workers               |
|                  |        | there and did not end                    |                       |                       |
| P:m:M:reload     | hash   | asked → last wish for new versions;      | an hour unchanged     | models reload,        |
|                  |        | W → last wish that worker has fulfilled  |                       | real-time workers     |
| P:m:M:answers    | list   | answers computed on demand, and what     | newest few hundred,   | real-time workers     |
|                  |        | made them (JSON): a sample for parity    | a day unchanged       |                       |
| P:m:M:active_run | string | run id                                   | until run is over     | run scripts           |
| P:m:M:runs       | zset   | run id, scored by creation time          | newest 200 kept       | run scripts           |
| P:m:M:slots      | hash   | schedule slot → run id                   | newest kept           | run scripts           |
| P:m:M:quarantines| zset   | run id, folder of the rows it left out,  | 30 days after its run | request; maintenance  |
|                  |        | scored by when that is removed (epoch s) |                       |                       |
| P:m:M:reconciler | string | who moves this model's runs on now       | seconds               | maintenance           |
| P:r:R            | hash   | the run record                           | 30 days after end     | run scripts           |
| P:r:R:plan       | hash   | chunk → its slices (JSON);               | 30 days after it was  | planning              |
|                  |        | fN → file N of the source (JSON)         | last worked on        | reconciler            |
| P:r:R:entities   | string | ids a partial run is asked for (packed)  | until planned, a day  | request               |
| P:r:R:claims     | hash   | chunk → attempt, token, lease            | with the run          | claim, renew, finish  |
| P:r:R:done       | hash   | chunk → chunk result (JSON)              | with the run          | finish (once a chunk) |
| P:r:R:sent       | zset   | chunk number, scored by sending time     | with the run          | reconciler            |
| P:r:R:driver     | string | the Spark driver that hands out chunks   | seconds               | that driver           |
| P:r:R:histogram  | hash   | output:bin → count of predictions        | with the run          | finish                |
| P:h:M:MINUTE     | hash   | outcome → count; hit_s:B, miss_s:B,      | 8 days                | API processes         |
|                  |        | age_s:B, rows:B (bucket B) → count       |                       |                       |
|                  |        | fallback:NAME:OUTCOME → entities;        |                       | real-time workers     |
|                  |        | parity:PATH:RESULT → answers             |                       | workers               |
| P:h:M:total      | hash   | the same fields, since ever              | for good              | all of these          |
| P:h:M:asked:DAY  | string | HyperLogLog of the ids answered that day | 8 days                | API processes         |
| P:j:J            | hash   | the job record                           | an hour unchanged     | API, workers          |
| P:j:J:inputs     | hash   | part number → ids or instances (JSON)    | till its part is done | API                   |
| P:j:J:parts      | hash   | part number → predictions (JSON)         | with the job          | real-time workers     |
| P:jobs           | hash   | minute → bytes of the jobs begun in it   | an hour unchanged     | API, workers          |
| P:i:DIGEST       | string | job id, digest of its request            | an hour               | API                   |
| P:w:W            | string | what a worker or an API process says of  | 5 to 15 s unchanged   | they themselves       |
|                  |        | itself (JSON)                            |                       |                       |
| P:q:QUEUE        | zset   | worker W, scored by its last beat;       | an hour unchanged     | they themselves       |
|                  |        | QUEUE `@api`: API processes              |                       |                       |
| P:doctor:TOKEN   | string | a write to see whether writes are taken  | 10 s, or a moment     | doctor                |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: entity ids whose UTF-8 is longer are stored under a digest: one long field unpacks a compact hash
MAX_INLINE_ID_BYTES = 60


#: what belongs to a run beside its record, each under a key of its own
RUN_PARTS = ("plan", "entities", "claims", "done", "sent", "driver", "histogram")


class TableKind(StrEnum):
    """The two tables of a model."""

    PREDICTIONS = "p"
    FEATURES = "f"


@dataclass(frozen=True)
class TableKeys:
    """Keys of one table; `base` is `P:T`."""

    base: str

    @property
    def model(self) -> str:
        """The model whose table it is."""
        return self.base.rpartition(":")[2]

    @property
    def pointer(self) -> str:
        """Hash with what is served: generations, versions, labels."""
        return f"{self.base}:pointer"

    @property
    def sequence(self) -> str:
        """Counter of generation numbers."""
        return f"{self.base}:seq"

    @property
    def generations(self) -> str:
        """Sorted set of the generations that are not collected yet."""
        return f"{self.base}:gens"

    @property
    def schemas(self) -> str:
        """Hash digest → fields, with which overlay values are decoded."""
        return f"{self.base}:schemas"

    @property
    def generation_prefix(self) -> str:
        """What `generation` starts with, for scripts that find the number only inside Redis."""
        return f"{self.base}:g:"

    def generation(self, number: int) -> str:
        """Hash with `state`, `manifest`, `version`, `sweep_due_at`."""
        return f"{self.generation_prefix}{number}"

    def bucket(self, number: int, bucket: int) -> str:
        """Hash of packed values."""
        return f"{self.base}:g:{number}:{bucket}"

    def bucket_prefix(self, number: int) -> str:
        """What `bucket` starts with, for writers that spell many keys in a row."""
        return f"{self.base}:g:{number}:"

    def part(self, name: str) -> TableKeys:
        """Keys of a part of this table's rows, such as one feature group."""
        return TableKeys(f"{self.base}:u:{name}")

    def overlay(self, field: bytes) -> bytes:
        """Key of one overlay entry; `field` is the id's stored form."""
        return f"{self.base}:o:".encode() + field


@dataclass(frozen=True)
class Keys:
    """All keys of one deployment."""

    prefix: str

    def table(self, kind: TableKind, model: str) -> TableKeys:
        """Keys of a model's prediction or feature table."""
        return TableKeys(f"{self.prefix}:{kind.value}:{model}")

    def model_record(self, model: str) -> str:
        """Hash version → version record."""
        return f"{self.prefix}:m:{model}:record"

    def micro_batches(self, model: str) -> str:
        """Hash version and device → rows per model call."""
        return f"{self.prefix}:m:{model}:micro"

    def loads(self, model: str) -> str:
        """Hash version, host and process → loads of that version of a model that began there and did not end."""
        return f"{self.prefix}:m:{model}:loads"

    def reload(self, model: str) -> str:
        """Hash of the wishes to look for new versions of a model."""
        return f"{self.prefix}:m:{model}:reload"

    def answers(self, model: str) -> str:
        """List of a sample of the answers computed on demand, the newest first."""
        return f"{self.prefix}:m:{model}:answers"

    def active_run(self, model: str) -> str:
        """The one run of a model that is not over."""
        return f"{self.prefix}:m:{model}:active_run"

    def runs(self, model: str) -> str:
        """Sorted set of run ids."""
        return f"{self.prefix}:m:{model}:runs"

    def quarantines(self, model: str) -> str:
        """Sorted set of run ids with the folders of what they left out, by when those are removed."""
        return f"{self.prefix}:m:{model}:quarantines"

    def slots(self, model: str) -> str:
        """Hash schedule slot → run id."""
        return f"{self.prefix}:m:{model}:slots"

    def run(self, run_id: str) -> str:
        """The run record."""
        return f"{self.prefix}:r:{run_id}"

    def run_part(self, run_id: str, part: str) -> str:
        """One of RUN_PARTS of a run."""
        return f"{self.prefix}:r:{run_id}:{part}"

    def reconciler(self, model: str) -> str:
        """Lock of whoever moves this model's runs on."""
        return f"{self.prefix}:m:{model}:reconciler"

    def hits(self, model: str, minute: int) -> str:
        """Outcome counters of one minute (epoch minutes)."""
        return f"{self.prefix}:h:{model}:{minute}"

    def hit_totals(self, model: str) -> str:
        """All that `hits` counted since ever."""
        return f"{self.prefix}:h:{model}:total"

    def asked(self, model: str, day: int) -> str:
        """How many different entities were answered on a day (epoch days)."""
        return f"{self.prefix}:h:{model}:asked:{day}"

    def job(self, job_id: str) -> str:
        """The job record."""
        return f"{self.prefix}:j:{job_id}"

    def job_inputs(self, job_id: str) -> str:
        """Hash part number → what to predict, of the parts that are not done."""
        return f"{self.prefix}:j:{job_id}:inputs"

    def job_parts(self, job_id: str) -> str:
        """Hash part number → predictions."""
        return f"{self.prefix}:j:{job_id}:parts"

    @property
    def job_room(self) -> str:
        """Hash minute → bytes that jobs begun in it take."""
        return f"{self.prefix}:jobs"

    def idempotency(self, digest: str) -> str:
        """Which job a client's Idempotency-Key (by its digest) has made."""
        return f"{self.prefix}:i:{digest}"

    def worker(self, identity: str) -> str:
        """A living worker's own words."""
        return f"{self.prefix}:w:{identity}"

    def doctor(self, token: str) -> str:
        """Return the key that `forecache doctor` writes and removes, to see whether writes are taken."""
        return f"{self.prefix}:doctor:{token}"

    def queue_workers(self, queue: str) -> str:
        """Sorted set of the workers that serve a queue, or lately did."""
        return f"{self.prefix}:q:{queue}"
