"""SavedModels whose graphs read or write files of the worker, and those that need no more than loading them does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelError
from inference.models.runtimes import LoadOptions, load_runtime
from tests.support.lazy_imports import LazyModule

tf = LazyModule("tensorflow")
graph_files = LazyModule("inference.models.runtimes.saved_model_checks")
saved_model_pb2 = LazyModule("tensorflow.core.protobuf.saved_model_pb2")

# TensorFlow is imported here, and each graph is traced
pytestmark = pytest.mark.slow


def reads(x: Any) -> Any:
    return tf.map_fn(tf.io.read_file, x)


def reads_if_asked(x: Any) -> Any:
    return tf.cond(tf.strings.length(x[0]) > 3, lambda: tf.io.read_file(x[0]), lambda: x[0])[None]


def writes(x: Any) -> Any:
    with tf.control_dependencies([tf.io.write_file("written", x[0])]):
        return tf.identity(x)


def lists(x: Any) -> Any:
    return tf.io.matching_files(x)


def counts_lines(x: Any) -> Any:
    return tf.data.TextLineDataset(x).reduce(tf.constant(0, tf.int64), lambda lines, _: lines + 1)[None]


def prints(x: Any) -> Any:
    with tf.control_dependencies([tf.print(x, output_stream="file:///tmp/written")]):
        return tf.identity(x)


def calls_python(x: Any) -> Any:
    return tf.py_function(lambda text: text, [x], tf.string)


def saves(x: Any) -> Any:
    saved = tf.raw_ops.SaveV2(prefix=x[0], tensor_names=["a"], shape_and_slices=[""], tensors=[x])
    with tf.control_dependencies([saved]):
        return tf.identity(x)


def restores(x: Any) -> Any:
    return tf.raw_ops.RestoreV2(prefix=x[0], tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.string])[0][None]


def samples(x: Any) -> Any:
    chosen = tf.random.fixed_unigram_candidate_sampler(
        tf.zeros([1, 1], tf.int64), 1, 1, True, 3, vocab_file="/etc/hosts"
    )
    return chosen[0] + tf.cast(tf.size(x), tf.int64)


def looks_up(file: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def look_up(x: Any) -> Any:
        table = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        filled = tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename=file(x), key_index=-2, value_index=-1
        )
        with tf.control_dependencies([filled]):
            return tf.raw_ops.LookupTableFindV2(table_handle=table, keys=x, default_value=tf.constant(-1, tf.int64))

    return look_up


GRAPHS = {
    "ReadFile": reads,
    "ReadFile, in a branch": reads_if_asked,
    "WriteFile": writes,
    "MatchingFiles": lists,
    "TextLineDataset": counts_lines,
    "PrintV2 with a file as output_stream": prints,
    "EagerPyFunc": calls_python,
    "SaveV2": saves,
    "RestoreV2": restores,
    "vocab_file": samples,
    "InitializeTableFromTextFileV2 with a file that is no asset": looks_up(lambda _: "/etc/hosts"),
    "InitializeTableFromTextFileV2 with a file": looks_up(lambda x: x[0]),
}


def save(folder: Path, function: Callable[[Any], Any]) -> None:
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def serve(self, x: Any) -> Any:
            return {"y": function(x)}

    module = Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(folder), signatures=module.serve)


@pytest.mark.parametrize("told", GRAPHS)
def test_a_graph_that_opens_files_is_refused_by_the_name_of_what_does_it(tmp_path: Path, told: str) -> None:
    save(tmp_path, GRAPHS[told])
    with pytest.raises(ModelError, match=f"its graph (holds|runs) .*{told.partition(',')[0]}"):
        load_runtime(tmp_path)


def test_it_is_served_where_the_settings_allow_code(tmp_path: Path) -> None:
    save(tmp_path, reads)
    assert load_runtime(tmp_path, options=LoadOptions(allow_code=True)).signature.outputs[0].name == "y"


@pytest.fixture(scope="module")
def with_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that reads a vocabulary, an asset, when it is loaded."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "words.txt").write_text("red\ngreen\n")
    whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    words = tf.lookup.TextFileInitializer(str(folder / "words.txt"), tf.string, whole, tf.int64, number)

    class Module(tf.Module):
        def __init__(self) -> None:
            self.known = tf.lookup.StaticHashTable(words, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def serve(self, x: Any) -> Any:
            return {"y": self.known.lookup(x)}

    module = Module()
    tf.saved_model.save(module, str(folder / "1"), signatures=module.serve)
    (folder / "words.txt").unlink()
    return folder / "1"


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy a SavedModel with a change to its graph."""
    shutil.copytree(source, target)
    model = saved_model_pb2.SavedModel.FromString((target / "saved_model.pb").read_bytes())
    change(model.meta_graphs[0])
    (target / "saved_model.pb").write_bytes(model.SerializeToString())
    return target


def text_constant(node: Any, name: str, text: str) -> None:
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))


def initializer_of(meta_graph: Any) -> Any:
    functions = meta_graph.graph_def.library.function
    return next(one for one in functions if any(node.op.startswith("InitializeTable") for node in one.node_def))


def upwards(meta_graph: Any) -> None:
    meta_graph.asset_file_def[0].filename = "../../../../../../../../etc/hosts"


def absolute(meta_graph: Any) -> None:
    meta_graph.asset_file_def[0].filename = "/etc/hosts"


def constant_in_place_of_the_asset(meta_graph: Any) -> None:
    text_constant(meta_graph.graph_def.node.add(), "other", "/etc/hosts")
    objects = meta_graph.object_graph_def
    objects.nodes.add().constant.operation = "other"
    objects.concrete_functions[initializer_of(meta_graph).signature.name].bound_inputs[0] = len(objects.nodes) - 1


def constant_in_the_function(meta_graph: Any) -> None:
    function = initializer_of(meta_graph)
    text_constant(function.node_def.add(), "other", "/etc/hosts")
    next(node for node in function.node_def if node.op.startswith("InitializeTable")).input[1] = "other:output:0"


@pytest.mark.parametrize("change", [upwards, absolute, constant_in_place_of_the_asset, constant_in_the_function])
def test_a_vocabulary_that_lies_elsewhere_is_refused(
    tmp_path: Path, with_vocabulary: Path, change: Callable[[Any], None]
) -> None:
    folder = changed(with_vocabulary, tmp_path / "1", change)
    tf.saved_model.load(str(folder))  # TensorFlow itself reads it
    with pytest.raises(ModelError, match=r"outside of its folder|with a file that is no asset"):
        load_runtime(folder)


def test_a_vocabulary_that_is_an_asset_is_read(with_vocabulary: Path) -> None:
    runtime = load_runtime(with_vocabulary)
    assert runtime.predict({"x": np.array(["green", "blue"], object)})["y"].tolist() == [1, -1]


def write_graph_of_tensorflow_1(folder: Path, vocabulary: Path, *, with_asset: bool) -> None:
    old = tf.compat.v1
    whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    with tf.Graph().as_default(), old.Session() as session:
        x = old.placeholder(tf.string, [None])
        words = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, whole, tf.int64, number)
        offset = old.get_variable("offset", [], tf.int64, initializer=old.zeros_initializer())
        y = tf.lookup.StaticHashTable(words, -1).lookup(x) + offset
        session.run([old.global_variables_initializer(), old.tables_initializer()])
        signature = old.saved_model.predict_signature_def({"x": x}, {"y": y})
        assets = old.get_collection(old.GraphKeys.ASSET_FILEPATHS) if with_asset else None
        builder = old.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map={"serving_default": signature},
            main_op=old.tables_initializer(), assets_collection=assets,
        )  # fmt: skip
        builder.save()


def test_graphs_of_tensorflow_1_may_restore_variables_and_read_assets_only(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("red\ngreen\n")
    write_graph_of_tensorflow_1(tmp_path / "good", vocabulary, with_asset=True)
    graph_files.check_opens_no_files(tmp_path / "good")
    write_graph_of_tensorflow_1(tmp_path / "bad", vocabulary, with_asset=False)
    with pytest.raises(ModelError, match="InitializeTableFromTextFileV2 with a file that is no asset"):
        load_runtime(tmp_path / "bad")
