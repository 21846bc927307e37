"""Features: what a model needs to know of an entity, and how tables and requests become arrays."""

from inference.features.bulk_load import LoadReport, load_features
from inference.features.contract import FeatureContract, contract_from_signature, read_contract, written_contract
from inference.features.feature import Feature
from inference.features.functions import FeatureFunctions
from inference.features.gathering import Fallback, FeatureGatherer, Found, Gathered, explain
from inference.features.groups import FeatureGroup, GroupSource, GroupStatus
from inference.features.key_columns import EARLIEST_S, LATEST_S, check_key_columns, event_times
from inference.features.rows import FeatureRows
from inference.features.updates import EachWritten, FeatureUpdate, FeatureWriter, UpdateResult
from inference.features.vectoriser import Vectoriser

__all__ = [
    "EARLIEST_S",
    "LATEST_S",
    "EachWritten",
    "Fallback",
    "Feature",
    "FeatureContract",
    "FeatureFunctions",
    "FeatureGatherer",
    "FeatureGroup",
    "FeatureRows",
    "FeatureUpdate",
    "FeatureWriter",
    "Found",
    "Gathered",
    "GroupSource",
    "GroupStatus",
    "LoadReport",
    "UpdateResult",
    "Vectoriser",
    "check_key_columns",
    "contract_from_signature",
    "event_times",
    "explain",
    "load_features",
    "read_contract",
    "written_contract",
]
