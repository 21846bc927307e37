"""Chooses the rows that a whole run scores: of entities that were asked for lately, and of new ones.

Who was asked for is known by the day, from filters without ids. A filter never misses an entity; now and then it takes
another for one, so a run scores a few rows too many and never one too few. The rows are chosen while the run is
planned, and the plan keeps them: a chunk that is scored again, and a resumed run, score the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from inference.batch.selection import RowSlice, row_groups
from inference.entities import entity_ids_as_text
from inference.errors import BadInput
from inference.monitoring.access_sample import AccessSample
from inference.monitoring.asked_filters import DAY_S, PIECE_BYTES, SMALLEST_BYTES, AskedFilters, Filter, places_of
from inference.monitoring.id_hashes import Words
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.settings import EntitiesRule, ModelSettings
from inference.sources import Source, pack_mask
from inference.wording import counted

#: whole days that the access log must cover before most requests can be foretold: a week has its own rhythm
LEAST_DAYS = 7
#: days that a ranking looks back at most: a history has a bit for each
MOST_DAYS = 60
#: requests in the sample that a threshold needs: a hit rate of 0.95 is known to 0.7 points then
LEAST_TRIED = 1_000
#: a set must answer this share of yesterday's requests, if so many of them are known
LEAST_SHARE, LEAST_CHECKED = 0.5, 100
#: a day counts less the older it is, by one of these powers of its age: near 0 frequency counts, above 1 recency
_POWERS = (0.25, 0.5, 0.75, 1.0, 1.5)
#: days before the first one on which an entity was asked for count less by one of these factors: it may be new
_UNKNOWN = (1.0, 0.1, 0.02)
#: bits of a history that one look-up weighs
_TABLE_BITS = 8
#: bytes for each row, and at most, of the filter with a source's ids. Up to 33 million rows it takes one new entity of
#: 400 for a known one
_KNOWN_BYTES, _MOST_KNOWN_BYTES = 2, 64 << 20

Mask = npt.NDArray[np.bool_]
Chooser = Callable[[Words], Mask]


# --- the ranking of entities ---


class DayRanking:
    """Ranks entities by the share of the days on which they were asked for. An older day counts less."""

    def __init__(self, power: float, days: int, unknown: float = 1.0) -> None:
        """`power`: of the age; `days`: how many days count; `unknown`: the weight of days before the first request."""
        weights = np.zeros(64)
        weights[:days] = np.arange(1, days + 1) ** -float(power)
        bits = (np.arange(1 << _TABLE_BITS)[:, None] >> np.arange(_TABLE_BITS)) & 1
        known = np.cumsum(weights)
        #: the weight of all days, by the place of the highest bit
        self._of_all = np.append(known[:1], known + unknown * (known[-1] - known))
        self._tables = [bits @ weights[at : at + _TABLE_BITS] for at in range(0, 64, _TABLE_BITS)]

    def scores(self, histories: Words) -> npt.NDArray[np.float64]:
        """Return the score of each history: bit 0 is the last day that counts, bit N the Nth day before."""
        low, scores = np.uint64((1 << _TABLE_BITS) - 1), np.zeros(len(histories))
        for number, table in enumerate(self._tables):
            scores += table[(histories >> np.uint64(number * _TABLE_BITS) & low).astype(np.intp)]
        scores /= self._of_all[np.minimum(np.frexp(histories.astype(np.float64))[1], 64)]
        return scores


@dataclass(frozen=True)
class Threshold:
    """The least score of the entities in a set. `share`: of the requests on which it was tried, those it answers."""

    ranking: DayRanking
    least: float
    share: float

    def chooses(self, histories: Words) -> Mask:
        """Tell which entities are in the set, by their histories as `AskedFilters` has them."""
        one = np.uint64(1)
        # who was asked for today, which is not over, counts as asked for yesterday
        mask: Mask = self.ranking.scores((histories >> one) | (histories & one)) >= self.least
        return mask


def find_threshold(hit_rate: float, days: int, histories: Words, sample: AccessSample) -> Threshold | None:
    """Return the threshold of the smallest set that answers that share of requests; None if too few are known.

    It is tried on each of the last days, up to a week: of its requests, how many ask for entities that the days before
    it rank high enough? If no set answers so many, the threshold's `least` is 0, and its `share` is what all entities
    with a history answer. `days`: whole days that are known; `histories`: of the entity of each visit in the sample.
    """
    trial = _HeldOutDays(min(LEAST_DAYS, days // 2), histories, sample)
    if trial.requests < LEAST_TRIED:
        return None
    rankings = [DayRanking(power, days - trial.days, unknown) for power in _POWERS for unknown in _UNKNOWN]
    thresholds = [trial.threshold(ranking, hit_rate) for ranking in rankings]
    return min(thresholds, key=trial.size)


class _HeldOutDays:
    """Tries rankings on the requests of the last days."""

    def __init__(self, days: int, histories: Words, sample: AccessSample) -> None:
        self.days = days
        today = int(sample.until // DAY_S)
        ago = today - (sample.begun // DAY_S).astype(np.int64)
        tried = [ago == day for day in range(1, days + 1)]
        #: of the entity of each visit, on the day before it and earlier
        self._before = np.concatenate([histories[mask] >> np.uint64(day + 2) for day, mask in enumerate(tried)])
        #: how many of all requests each visit stands for, and their number
        stands_for = np.where(sample.popular, sample.accesses, sample.accesses / (sample.rate or 1.0))
        self._accesses = np.concatenate([stands_for[mask] for mask in tried])
        self._expected = sum(sample.totals.get(today - day, 0) for day in range(1, days + 1))
        self.requests = int(sum(sample.accesses[mask].sum() for mask in tried))
        in_sample = ~sample.popular
        self._entities = histories[in_sample][np.unique(sample.entity[in_sample], return_index=True)[1]]

    def threshold(self, ranking: DayRanking, hit_rate: float) -> Threshold:
        """Return the highest threshold under which few enough requests lie."""
        scores = ranking.scores(self._before)
        order = np.argsort(scores)
        scores, below = scores[order], np.append(0, np.cumsum(self._accesses[order]))
        # what the sample lacks, or has too much of, are requests for the few entities that rank highest
        at = int(np.searchsorted(below, (1 - hit_rate) * self._expected, side="right")) - 1
        least = float(scores[min(at, len(scores) - 1)])
        missed = below[np.searchsorted(scores, least if least > 0 else np.nextafter(0, 1))]
        return Threshold(ranking, least, float(1 - missed / self._expected))

    def share_asked_before(self, days: int) -> float:
        """Return the share of the requests that ask for entities that were asked for within some days before."""
        before = self._before & np.uint64((1 << min(days, 64)) - 1)
        return float(1 - self._accesses[before == 0].sum() / self._expected)

    def size(self, threshold: Threshold) -> float:
        """Return how many entities of the sample a set has; infinite if it cannot answer enough requests."""
        return float(threshold.chooses(self._entities).sum()) if threshold.least > 0 else math.inf


def _whole_days(since: float, until: float) -> int:
    """Return how many days before today something covers from an instant on."""
    return int(until // DAY_S) - math.ceil(since / DAY_S)


# --- the set of one run ---


@dataclass
class ActiveSet:
    """Chooses rows while a run is planned, and counts them.

    `rule`: the rule that is applied; `all` if that of the settings cannot be, and `note` says why.
    """

    rule: str
    note: str = ""
    filters: AskedFilters | None = None
    #: tells of the histories of entities which are in; None: all are
    chooses: Chooser | None = None
    #: the ids of the source of the run that serves; entities beyond them are new. None: new ones are not in
    known_before: Filter | None = None
    #: gathers the ids of this run's source, for the next run; None: nobody will ask
    known: Filter | None = None
    #: of yesterday; None: too few are known
    requests: DayRequests | None = None
    #: of the last days' requests, the share that such a set would have answered, 0 to 1; None: too few are known
    share: float | None = None
    #: called before each part of the marking
    give_way: Callable[[], None] = lambda: None
    rows: int = 0
    rows_chosen: int = 0
    rows_new: int = 0

    @property
    def rows_outside(self) -> int:
        """Rows of the source that are not chosen."""
        return self.rows - self.rows_chosen

    def mark(self, source: Source, pieces: Iterable[RowSlice], entity_column: str) -> Iterator[RowSlice]:
        """Yield the pieces, each with the rows to score. Reads the ids of the source, some 100 000 at a time.

        Raises:
            SourceError: the source cannot be read.
        """
        if self.filters is None or (self.chooses is None and self.known is None):
            yield from pieces
            return
        for group, batches in row_groups(source, iter(pieces), [entity_column]):
            columns = (entity_ids_as_text(batch.column(0), entity_column) for batch in batches)
            mask = np.concatenate([self._look_at(self.filters, pc.fill_null(ids, "")) for ids in columns])
            for piece in group:
                yield self._marked(piece, mask[piece.slice.offset : piece.slice.offset + piece.slice.length])

    def _look_at(self, filters: AskedFilters, ids: pa.Array) -> Mask:
        """Return which rows are in the set."""
        self.give_way()
        hashes = filters.hashes(ids)
        if self.known is not None:
            self.known.add(places_of(hashes, self.known.size))
        if self.chooses is None:
            return np.ones(len(hashes), bool)
        mask = self.chooses(filters.history(hashes))
        if self.known_before is not None:
            is_new = ~mask & ~self.known_before.contains(hashes)
            self.rows_new += int(is_new.sum())
            mask |= is_new
        if self.requests is not None:
            self.requests.see(hashes[mask])
        return mask

    def _marked(self, piece: RowSlice, mask: Mask) -> RowSlice:
        marked = replace(piece.slice, chosen=None if mask.all() else pack_mask(mask))
        self.rows += piece.rows
        self.rows_chosen += int(marked.rows_to_score.sum())
        return replace(piece, slice=marked)

    def check(self) -> None:
        """Check the set, once all pieces are marked.

        Raises:
            BadInput: it has no row, or leaves out more than half of yesterday's requests.
        """
        if self.chooses is None or not self.rows:
            return
        share = 1.0 if self.requests is None else self.requests.share
        if self.rows_chosen and share >= LEAST_SHARE:
            return
        what = f"leaves out {1 - share:.0%} of yesterday's requests" if self.rows_chosen else "chooses no row"
        raise BadInput(
            f"entities = {self.rule!r} {what}: compare the ids of the table with those that requests name, or set "
            'entities = "all"',
            field="entities",
        )

    @property
    def text(self) -> str:
        """The set in words."""
        if self.chooses is None:
            return self.note
        new = f", {self.rows_new:,} of them new" if self.rows_new else ""
        got = (
            ""
            if self.share is None
            else f"; such a set would have answered {self.share:.1%} of the last days' requests"
        )
        return f"{self.rows_chosen:,} of {counted(self.rows, 'row')}{new}{got}"


class DayRequests:
    """Some requests, and how many of them a set answers."""

    def __init__(self, entity: Words, accesses: npt.NDArray[np.float64]) -> None:
        """`entity`: as a sample has it; `accesses`: how many requests each stands for. There must be some."""
        self._entity, places = np.unique(entity, return_inverse=True)
        self._accesses = np.bincount(places, weights=accesses)
        self._found = np.zeros(len(self._entity), bool)

    def see(self, chosen: Words) -> None:
        """Note entities of the set, by their hashes."""
        entity = chosen >> np.uint64(16)
        entity = entity[entity <= self._entity[-1]]
        places = np.searchsorted(self._entity, entity)
        self._found[places[self._entity[places] == entity]] = True

    @property
    def share(self) -> float:
        """The share of the requests that ask for entities that were seen."""
        return float(self._accesses[self._found].sum() / self._accesses.sum())


# --- what a set is made from ---


@dataclass(frozen=True)
class ActiveSets:
    """Opens the active sets of runs. Methods raise StoreUnavailable when Redis does not answer.

    The sets call `give_way` before each part of their work.
    """

    client: Client
    keys: Keys
    give_way: Callable[[], None] = lambda: None

    def open(self, name: str, model: ModelSettings, *, rows: int, serving: str | None, now: float) -> ActiveSet:
        """Return the set of a new run; of all rows, with a note that says why, if it cannot be told who is in.

        `rows`: of the source; `serving`: the run that serves; `now`: epoch seconds.
        """
        rule = model.batch.rule
        filters = AskedFilters.load(self.client, self.keys, name, _days_of(rule, model) + 1, lambda: now)
        if filters is None:
            return _of_all(model, "the access log holds no day: nothing was asked for, or Redis lost it")
        sample = AccessSample.load(self.client, self.keys, name, model.access_log.days, lambda: now)
        found = _choose_by(rule, filters, sample)
        new = model.batch.new_entities
        known = Filter(known_bytes(rows)) if new else None
        active = ActiveSet(model.batch.entities, filters=filters, known=known, give_way=self.give_way)
        if new and not isinstance(found, str):
            active.known_before = None if serving is None else Filter.load(self.client, self._known_key(serving))
            if active.known_before is None:
                found = "the run that serves kept no ids, by which new entities are told"
        if isinstance(found, str):
            return replace(_of_all(model, found), filters=filters, known=known, give_way=self.give_way)
        active.chooses, active.share = found
        active.requests = _yesterday(sample)
        return active

    def keep_known(self, run_id: str, known: Filter, *, keep_s: float, others: Iterable[str]) -> None:
        """Keep the ids of a run's source for `keep_s` seconds, and forget those of other runs."""
        key, data = self._known_key(run_id), known.data
        self.client.send([("UNLINK", key, *map(self._known_key, others))])
        for at in range(0, len(data), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            self.client.send([("SETRANGE", key, at, piece), ("EXPIRE", key, math.ceil(keep_s))])

    def _known_key(self, run_id: str) -> str:
        return self.keys.run_part(run_id, "known")


def _days_of(rule: EntitiesRule, model: ModelSettings) -> int:
    """Return how many days before today a rule looks back, at most."""
    if rule.asked_within_s is not None:
        return math.ceil(rule.asked_within_s / DAY_S)
    return min(model.access_log.asked_days, MOST_DAYS)


#: which entities are in; the share of the last days' requests that such a set would have answered, if that is known
_Found = tuple[Chooser, float | None]


def _choose_by(rule: EntitiesRule, filters: AskedFilters, sample: AccessSample) -> _Found | str:
    """Return which entities are in; a text says why that cannot be told."""
    if rule.hit_rate is not None:
        return _most_requested(rule.hit_rate, filters, sample)
    if filters.since > filters.at - (rule.asked_within_s or 0.0):
        days, wanted = (filters.at - filters.since) / DAY_S, (rule.asked_within_s or 0.0) / DAY_S
        return f"the access log goes back {days:.1f} days, and the rule {wanted:g}"
    trial = _HeldOutDays(1, filters.history(sample.entity << np.uint64(16)), sample)
    share = trial.share_asked_before(filters.days - 2) if trial.requests >= LEAST_CHECKED else None
    return _was_asked, share


def _was_asked(histories: Words) -> Mask:
    asked: Mask = histories != 0
    return asked


def _most_requested(hit_rate: float, filters: AskedFilters, sample: AccessSample) -> _Found | str:
    days = min(_whole_days(filters.since, filters.at), filters.days - 1)
    if days < LEAST_DAYS:
        return f"the access log covers {counted(max(days, 0), 'whole day')}, and this rule needs {LEAST_DAYS}"
    threshold = find_threshold(hit_rate, days, filters.history(sample.entity << np.uint64(16)), sample)
    if threshold is None:
        return f"too little traffic: a sample of the last days needs {LEAST_TRIED:,} requests"
    if threshold.least <= 0:
        return f"entities that were asked for before get only {threshold.share:.1%} of the requests"
    return threshold.chooses, threshold.share


def _of_all(model: ModelSettings, why: str) -> ActiveSet:
    return ActiveSet("all", f"a full run, not entities = {model.batch.entities!r}: {why}")


def known_bytes(rows: int) -> int:
    """Return the size of the filter with the ids of a source."""
    return min(max(rows * _KNOWN_BYTES, SMALLEST_BYTES), _MOST_KNOWN_BYTES)


def _yesterday(sample: AccessSample) -> DayRequests | None:
    is_yesterday = sample.begun // DAY_S == sample.until // DAY_S - 1
    accesses = sample.accesses[is_yesterday]
    if accesses.sum() < LEAST_CHECKED:
        return None
    stands_for = np.where(sample.popular[is_yesterday], accesses, accesses / sample.rate)
    return DayRequests(sample.entity[is_yesterday], stands_for)
