"""Spells every Redis key of Forecache. No other module does.

All keys live in `cache_url`, which must not evict, and start with the deployment prefix `P`. `T` is a table:
`p:<model>` (predictions of a model) or `f:<model>` (its features). `M` is a model, `R` a run, `J` a job, `W` a worker.

In a Redis Cluster, `P` is written with braces, `{P}`: scripts and transactions then find all of these keys in one
slot. Only the rows are spread over all slots, P:T:g:N:{B} and P:T:o:ID, whose `P` has no braces.

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
| P:T:g:N:{B}      | hash   | id → packed value + as_of; B alone       | manifest's deadline   | batch workers         |
|                  |        | decides the slot of a cluster, so bucket |                       |                       |
|                  |        | B of all generations lies in one slot.   |                       |                       |
|                  |        | In a generation of format 1: P:T:g:N:B   |                       |                       |
| P:T:o:ID         | string | header + packed value; or a header alone | the entry's `keep`    | real-time workers,    |
|                  |        | that says features changed since         |                       | updates of features   |
| P:T:u:GROUP:…    |        | as P:T:o:ID and P:T:schemas, of one feature group of several; written by updates  |
| P:T:schemas      | hash   | digest → fields of overlay values (JSON) | for good              | upsert script         |
| P:m:M:record     | hash   | version → version record (JSON)          | for good              | inspect, workers      |
| P:m:M:micro      | hash   | version:device → rows per call (JSON)    | for good              | batch workers         |
| P:m:M:loads      | hash   | version, host, pid → loads that began    | 30 days unchanged     | workers               |
|                  |        | and did not end                          |                       |                       |
| P:m:M:choice     | string | version that the registry named last,    | for good              | workers               |
|                  |        | and for which path (JSON)                |                       |                       |
| P:m:M:reload     | hash   | asked → last request to look for new     | an hour unchanged     | models reload,        |
|                  |        | versions; W → last one that W has done   |                       | real-time workers     |
| P:m:M:answers    | list   | sample of answers computed on demand,    | newest few hundred,   | real-time workers     |
|                  |        | for the parity check (JSON)              | a day unchanged       |                       |
| P:m:M:forgotten  | hash   | key → random key of the digests; digest  | for good              | forget, API           |
|                  |        | of an id → at, until, done_at (JSON)     |                       |                       |
| P:m:M:forgotten:DIGEST | string | what was removed of it (JSON)      | a day                 | forget, maintenance   |
| P:m:M:active_run | string | run id                                   | until run is over     | run scripts           |
| P:m:M:held_run   | string | the run that waits for its publication   | while it is held      | run scripts           |
| P:m:M:runs       | zset   | run id, scored by creation time          | newest 200 kept       | run scripts           |
| P:m:M:slots      | hash   | schedule slot → run id                   | newest kept           | run scripts           |
| P:m:M:quarantines| zset   | run id and quarantine folder, scored by  | 30 days after its run | request; maintenance  |
|                  |        | the folder's removal time (epoch s)      |                       |                       |
| P:m:M:reconciler | string | process that advances this model's runs  | seconds               | maintenance           |
| P:r:R            | hash   | the run record                           | 30 days after end     | run scripts           |
| P:r:R:plan       | hash   | chunk → its slices (JSON);               | 30 days after the     | planning              |
|                  |        | fN → file N of the source (JSON)         | last work on the run  | reconciler            |
| P:r:R:entities   | string | ids of a partial run (packed)            | until planned, a day  | request               |
| P:r:R:known      | string | Bloom filter of the ids of its source,   | the batch's `keep`, or| planning              |
|                  |        | if it has an active set                  | two published runs    |                       |
| P:r:R:claims     | hash   | chunk → attempt, token, lease            | with the run          | claim, renew, finish  |
| P:r:R:done       | hash   | chunk → chunk result (JSON)              | with the run          | finish (once a chunk) |
| P:r:R:sent       | zset   | chunk number, scored by sending time     | with the run          | reconciler            |
| P:r:R:driver     | string | the driver that hands out the chunks     | seconds               | that driver           |
| P:r:R:bins       | hash   | chunk → histogram of its predictions     | until they are added  | finish (once a chunk) |
|                  |        | (packed)                                 | up                    |                       |
| P:r:R:histogram  | hash   | output:bin → count of predictions        | with the run          | publishing            |
| P:r:R:diff       | string | its last comparison with what serves     | 30 days               | maintenance, commands |
|                  |        | (JSON)                                   |                       |                       |
| P:h:M:MINUTE     | hash   | outcome → count; hit_s:B, miss_s:B,      | 8 days                | API processes         |
|                  |        | age_s:B, rows:B (bucket B) → count       |                       |                       |
|                  |        | version:V:OUTCOME → answers;             |                       | API processes         |
|                  |        | calls:V:failed → rows, calls:V:B → tasks |                       | API processes         |
|                  |        | fallback:NAME:OUTCOME → entities;        |                       | real-time workers     |
|                  |        | parity:PATH:RESULT → answers             |                       | workers               |
| P:h:M:total      | hash   | the same fields, summed over all time    | for good              | all of these          |
| P:h:M:asked:DAY  | string | HyperLogLog of the ids answered that day | 8 days, or `days` of  | API, real-time        |
|                  |        |                                          | the access log        | workers               |
| P:h:M:log        | hash   | since (epoch s): all accesses are logged | for good              | API, real-time        |
|                  |        | from then on                             |                       | workers               |
| P:h:M:filter:DAY | string | Bloom filter of the entities asked for   | `asked_days`          | API, real-time        |
|                  |        | that day; its length is its size         |                       | workers               |
| P:h:M:accesses:DAY | hash | total, popular (accesses); threshold (of | `days` of the log     | API, real-time        |
|                  |        | the sample's hashes); gap (joins popular |                       | workers               |
|                  |        | visits); …_cuts (how often cut)          |                       |                       |
| P:h:M:sample:DAY | string | visits of sampled entities: 12 bytes     | `days` of the log     | API, real-time        |
|                  |        | each, with a hash in place of the id     |                       | workers               |
| P:h:M:popular:DAY | string | the same, of entities that are popular  | `days` of the log     | API, real-time        |
|                  |        |                                          |                       | workers               |
| P:h:M:hottest:DAY | string | number of accesses of the hottest other | `days` of the log     | API, real-time        |
|                  |        | entities: 12 bytes each, as in a visit   |                       | workers               |
| P:h:key          | string | random key of the hashes of ids          | for good              | API, real-time        |
|                  |        |                                          |                       | workers               |
| P:h:M:promise:DAY| hash   | promised, came → figures of a day (JSON) | 400 days              | maintenance           |
| P:h:requests     | string | a note: requests are answered now        | 2 s unchanged         | API processes         |
| P:h:replicated   | string | a note: a replica has all writes so far; | a second              | API processes         |
|                  |        | P:h:replicated:{N} on a cluster's node   |                       |                       |
| P:T:replicated   | string | the same, of begin and publish           | a second              | begin, publish        |
| P:j:J            | hash   | the job record                           | an hour unchanged     | API, workers          |
| P:j:J:inputs     | hash   | part number → ids or instances (JSON)    | until part is done    | API                   |
| P:j:J:parts      | hash   | part number → predictions (JSON)         | with the job          | real-time workers     |
| P:j:of:M         | zset   | job id of a model, scored by its last    | two hours unchanged   | API, real-time        |
|                  |        | change                                   |                       | workers               |
| P:jobs           | hash   | minute → bytes of the jobs begun in it   | an hour unchanged     | API, workers          |
| P:s:NAME         | hash   | applied, older, dead → count of a        | for good              | listeners             |
|                  |        | stream's messages                        |                       |                       |
| P:s:NAME:lag     | hash   | part of a stream → messages, seconds,    | an hour unchanged     | listeners             |
|                  |        | when they were seen (JSON)               |                       |                       |
| P:s:NAME:in_hand | hash   | listener → the messages in its hands and | a day unchanged       | listeners             |
|                  |        | how often they were delivered (JSON)     |                       |                       |
| P:s:NAME:dead    | stream | a message that cannot be applied, with   | the newest 10 000, a  | listeners             |
|                  |        | its reason (JSON)                        | week unchanged        |                       |
| P:s:NAME:dead_ids| zset   | its id in the stream, scored by when it  | with the former       | listeners             |
|                  |        | was noted                                |                       |                       |
| P:i:DIGEST       | string | job id, digest of its request            | an hour               | API                   |
| P:w:W            | string | state of a worker or an API process      | 5 to 15 s unchanged   | that process          |
|                  |        | (JSON)                                   |                       |                       |
| P:q:QUEUE        | zset   | worker W, scored by its last beat;       | an hour unchanged     | that process          |
|                  |        | QUEUE `@api`: API processes; `@listen`:  |                       |                       |
|                  |        | listeners to streams                     |                       |                       |
| P:doctor:TOKEN   | string | a test whether Redis takes writes        | 10 s, or a moment     | doctor                |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

#: ids with more bytes of UTF-8 are stored as a digest: one long field would unpack a compact hash
MAX_INLINE_ID_BYTES = 60


#: a run's data beside its record, each under its own key
RUN_PARTS = ("plan", "entities", "known", "claims", "done", "sent", "driver", "bins", "histogram", "diff")


class TableKind(StrEnum):
    """The two tables of a model."""

    PREDICTIONS = "p"
    FEATURES = "f"


@dataclass(frozen=True)
class TableKeys:
    """Keys of one table; `base` is `P:T`."""

    base: str

    @cached_property
    def rows(self) -> str:
        """What the keys of rows begin with: `base` without braces, which would keep them all in one slot."""
        return self.base.replace("{", "").replace("}", "")

    @property
    def model(self) -> str:
        """The model whose table it is."""
        return self.base.rpartition(":")[2]

    @property
    def deployment(self) -> Keys:
        """The other keys of the deployment that has this table."""
        return Keys(self.base.rsplit(":", 2)[0])

    @property
    def pointer(self) -> str:
        """Hash of what is served: generations, versions, labels."""
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
        """Hash digest → fields, to decode overlay values."""
        return f"{self.base}:schemas"

    @property
    def replicated(self) -> str:
        """The note that a replica has once it has all of the table's writes before it."""
        return f"{self.base}:replicated"

    @property
    def generation_prefix(self) -> str:
        """Prefix of `generation`, for scripts that find the number inside Redis."""
        return f"{self.base}:g:"

    def generation(self, number: int) -> str:
        """Hash with `state`, `manifest`, `version`, `sweep_due_at`."""
        return f"{self.generation_prefix}{number}"

    def bucket(self, number: int, bucket: int, *, tagged: bool = True) -> str:
        """Hash of packed values."""
        return self.bucket_form(number, tagged=tagged) % bucket

    def bucket_form(self, number: int, *, tagged: bool = True) -> str:
        """The form of a generation's `bucket` keys; `form % bucket` is one of them. Spares those who spell many.

        `tagged`: False for a generation of format 1, whose keys have no hash tag.
        """
        return f"{self.rows}:g:{number}:" + ("{%s}" if tagged else "%s")

    def part(self, name: str) -> TableKeys:
        """Keys of a part of this table's rows, such as one feature group."""
        return TableKeys(f"{self.base}:u:{name}")

    def overlay(self, field: bytes) -> bytes:
        """Key of one overlay entry; `field` is the id's stored form."""
        return f"{self.rows}:o:".encode() + field


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
        """Hash version, host and process → number of loads that began there and did not end."""
        return f"{self.prefix}:m:{model}:loads"

    def choice(self, model: str) -> str:
        """The version that a registry named last for a model."""
        return f"{self.prefix}:m:{model}:choice"

    def reload(self, model: str) -> str:
        """Hash of the requests to look for new versions of a model."""
        return f"{self.prefix}:m:{model}:reload"

    def answers(self, model: str) -> str:
        """List of sampled answers that were computed on demand, newest first."""
        return f"{self.prefix}:m:{model}:answers"

    def forgotten(self, model: str) -> str:
        """Hash of the entities that the model must not know: digests, and the key that makes them."""
        return f"{self.prefix}:m:{model}:forgotten"

    def forgotten_report(self, model: str, digest: str) -> str:
        """What was removed of a forgotten entity."""
        return f"{self.forgotten(model)}:{digest}"

    def active_run(self, model: str) -> str:
        """The one run of a model that is not over."""
        return f"{self.prefix}:m:{model}:active_run"

    def held_run(self, model: str) -> str:
        """The one run of a model that waits for its publication."""
        return f"{self.prefix}:m:{model}:held_run"

    def runs(self, model: str) -> str:
        """Sorted set of run ids."""
        return f"{self.prefix}:m:{model}:runs"

    def quarantines(self, model: str) -> str:
        """Sorted set of run ids with their quarantine folders, by removal time."""
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
        """Lock of the process that advances this model's runs."""
        return f"{self.prefix}:m:{model}:reconciler"

    def hits(self, model: str, minute: int) -> str:
        """Outcome counters of one minute (epoch minutes)."""
        return f"{self.prefix}:h:{model}:{minute}"

    def hit_totals(self, model: str) -> str:
        """Outcome counters summed over all time."""
        return f"{self.prefix}:h:{model}:total"

    def asked(self, model: str, day: int) -> str:
        """Number of distinct entities that were answered on a day (epoch days)."""
        return f"{self.prefix}:h:{model}:asked:{day}"

    def promise(self, model: str, day: int) -> str:
        """Hash of the figures that were promised for a day (epoch days), and of those that came."""
        return f"{self.prefix}:h:{model}:promise:{day}"

    def access_log(self, model: str) -> str:
        """Hash of what the access log of a model covers."""
        return f"{self.prefix}:h:{model}:log"

    def asked_filter(self, model: str, day: int) -> str:
        """Bloom filter of the entities that were asked for on a day (epoch days)."""
        return f"{self.prefix}:h:{model}:filter:{day}"

    def accesses(self, model: str, day: int) -> str:
        """Hash of what is known of a day's accesses (epoch days): their number, and the sample's threshold."""
        return f"{self.prefix}:h:{model}:accesses:{day}"

    def access_sample(self, model: str, day: int) -> str:
        """The sampled visits of a day (epoch days)."""
        return f"{self.prefix}:h:{model}:sample:{day}"

    def popular_accesses(self, model: str, day: int) -> str:
        """The visits of popular entities of a day (epoch days)."""
        return f"{self.prefix}:h:{model}:popular:{day}"

    def hottest(self, model: str, day: int) -> str:
        """The counted accesses of the hottest entities that are not popular, of a day (epoch days)."""
        return f"{self.prefix}:h:{model}:hottest:{day}"

    @property
    def hash_key(self) -> str:
        """The random key that hashes ids for the access log."""
        return f"{self.prefix}:h:key"

    @property
    def replicated(self) -> str:
        """The note that a replica has once it has all writes before it."""
        return f"{self.prefix}:h:replicated"

    @property
    def requests(self) -> str:
        """The note that API processes answer requests now."""
        return f"{self.prefix}:h:requests"

    def job(self, job_id: str) -> str:
        """The job record."""
        return f"{self.prefix}:j:{job_id}"

    def job_inputs(self, job_id: str) -> str:
        """Hash part number → inputs, for the parts that are not done."""
        return f"{self.prefix}:j:{job_id}:inputs"

    def job_parts(self, job_id: str) -> str:
        """Hash part number → predictions."""
        return f"{self.prefix}:j:{job_id}:parts"

    def jobs_of(self, model: str) -> str:
        """Sorted set of the jobs of a model, by their last change."""
        return f"{self.prefix}:j:of:{model}"

    @property
    def job_bytes(self) -> str:
        """Hash minute → bytes of the jobs that began in it."""
        return f"{self.prefix}:jobs"

    def idempotency(self, digest: str) -> str:
        """The job that a client's Idempotency-Key (by its digest) created."""
        return f"{self.prefix}:i:{digest}"

    def stream(self, name: str) -> str:
        """Hash of the counts of a stream's messages."""
        return f"{self.prefix}:s:{name}"

    def stream_lag(self, name: str) -> str:
        """Hash part of a stream → how far its listeners are behind."""
        return f"{self.prefix}:s:{name}:lag"

    def stream_in_hand(self, name: str) -> str:
        """Hash listener → the messages that it has in hand."""
        return f"{self.prefix}:s:{name}:in_hand"

    def dead_letters(self, name: str) -> str:
        """The messages of a stream that cannot be applied."""
        return f"{self.prefix}:s:{name}:dead"

    def dead_letter_ids(self, name: str) -> str:
        """Sorted set of the ids of these messages."""
        return f"{self.prefix}:s:{name}:dead_ids"

    def worker(self, identity: str) -> str:
        """The state of a live worker."""
        return f"{self.prefix}:w:{identity}"

    def doctor(self, token: str) -> str:
        """The key that `forecache doctor` writes and removes, to test whether Redis takes writes."""
        return f"{self.prefix}:doctor:{token}"

    def queue_workers(self, queue: str) -> str:
        """Sorted set of the workers that serve a queue, or recently did."""
        return f"{self.prefix}:q:{queue}"
