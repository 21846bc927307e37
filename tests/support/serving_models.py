"""SavedModels like those of TensorFlow Serving's documentation and tests, for `export_models.py`.

- `half_plus_two`   by TensorFlow 1: x / 2 + 2 by predict, classify and regress, and x / 2 + 3 by others
- `half_plus_two_tf2` the same by TensorFlow 2; as there, x of `predict` has the shape [1]: it computes no rows
- `half_plus_three` by TensorFlow 2: x / 2 + 3 of [None], as TensorFlow Serving's page of REST has it
- `digits`          scikit-learn's digits: `predict_images` of 64 numbers, and examples with them to classify
- `tensors`         signatures that give their inputs back, of any shape and of most types, and some odd ones
- `window`          [None, None] → the numbers of each row and of the longest row; wants three numbers at least
"""

from __future__ import annotations

import tensorflow as tf

v1 = tf.compat.v1


def half_plus_two(folder: str) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        a, b, c = (v1.get_variable(name, initializer=value) for name, value in (("a", 0.5), ("b", 2.0), ("c", 3.0)))
        examples = v1.placeholder(tf.string, [None], name="tf_example")
        features = v1.parse_example(
            examples, {"x": v1.FixedLenFeature([1], tf.float32), "x2": v1.FixedLenFeature([1], tf.float32, [0.0])}
        )
        x, x2 = (tf.identity(features[name], name=name) for name in ("x", "x2"))
        y, y2, y3 = tf.add(a * x, b, name="y"), tf.add(a * x, c, name="y2"), tf.add(a * x2, c, name="y3")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.builder.SavedModelBuilder(folder)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": declared("predict", {"x": x}, {"y": y}),
                "regress_x_to_y": declared("regress", {"inputs": examples}, {"outputs": y}),
                "regress_x_to_y2": declared("regress", {"inputs": examples}, {"outputs": y2}),
                "regress_x2_to_y3": declared("regress", {"inputs": x2}, {"outputs": y3}),
                "classify_x_to_y": declared("classify", {"inputs": examples}, {"scores": y}),
                "classify_x2_to_y3": declared("classify", {"inputs": x2}, {"scores": y3}),
            },
        )
        builder.save()


def declared(method: str, inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> object:
    sides = [
        {name: v1.saved_model.utils.build_tensor_info(tensor) for name, tensor in side.items()}
        for side in (inputs, outputs)
    ]
    return v1.saved_model.signature_def_utils.build_signature_def(*sides, f"tensorflow/serving/{method}")


class HalfPlusTwo(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = tf.Variable(0.5), tf.Variable(2.0), tf.Variable(3.0)

    def of_examples(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.a * tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="x")])
    def predict(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.a * x + self.b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self.of_examples(inputs) + self.b}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": self.of_examples(inputs) + self.b}

    @tf.function(input_signature=[tf.TensorSpec([1], tf.float32, name="inputs")])
    def of_number(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self.a * inputs + self.c}


def half_plus_two_tf2(folder: str) -> None:
    module = HalfPlusTwo()
    signatures = {
        "serving_default": module.predict,
        "regress_x_to_y": module.regress,
        "classify_x_to_y": module.classify,
        "regress_x2_to_y3": module.of_number,
    }
    tf.saved_model.save(module, folder, signatures)


def half_plus_three(folder: str) -> None:
    class HalfPlusThree(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = tf.Variable(0.5), tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": self.a * x + self.b}

    module = HalfPlusThree()
    tf.saved_model.save(module, folder, {"serving_default": module.serve})


def digits(folder: str) -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    trained = LogisticRegression().fit(images[:300] / 16.0, labels[:300])

    class Digits(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(trained.coef_.T.astype("float32"))
            self.bias = tf.Variable(trained.intercept_.astype("float32"))

        def scores(self, images: tf.Tensor) -> tf.Tensor:
            return tf.nn.softmax(images @ self.weights + self.bias)

        @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="images")])
        def predict_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"scores": self.scores(images)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([64], tf.float32)})
            best = tf.math.top_k(self.scores(parsed["x"]), 3)
            return {"scores": best.values, "classes": tf.strings.as_string(best.indices)}

    module = Digits()
    signatures = {"serving_default": module.classify, "predict_images": module.predict_images}
    tf.saved_model.save(module, folder, signatures)


def of_any_shape(dtype: tf.DType, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(None, dtype, name=name)


def tensors(folder: str) -> None:
    def same(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.identity(tensor) for name, tensor in inputs.items()}

    def with_bytes(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text_bytes": tf.identity(text)}

    def one(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.constant(1.0)}

    def uneven(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"a": x, "b": tf.concat([x, x], 0)}

    def complex_numbers(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.complex(x, x)}

    def kinds(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {
            "names": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
            "ratings": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            "age": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
        }
        parsed = tf.io.parse_example(inputs, spec)
        return {name: parsed[name] for name in spec}

    def mean(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reduce_mean(x, axis=0, keepdims=True)}

    def signed(function: object, **inputs: tf.TensorSpec) -> object:
        return tf.function(function).get_concrete_function(**inputs)

    module = tf.Module()
    integers = tf.TensorSpec([None, None], tf.int32, name="default")
    text, number = of_any_shape(tf.string, "text"), of_any_shape(tf.float32, "x")
    signatures = {
        "serving_default": signed(same, default=integers),
        "float": signed(same, x=number),
        "double": signed(same, x=of_any_shape(tf.float64, "x")),
        "text": signed(same, text=text),
        "bytes": signed(with_bytes, text=text),
        "flag": signed(same, x=of_any_shape(tf.bool, "x")),
        "half": signed(same, x=of_any_shape(tf.float16, "x")),
        "mixed": signed(
            same,
            int_tensor=of_any_shape(tf.int32, "int_tensor"), str_tensor=of_any_shape(tf.string, "str_tensor"),
            float_tensor=of_any_shape(tf.float32, "float_tensor"), dbl_tensor=of_any_shape(tf.float64, "dbl_tensor"),
        ),
        "custom_signature_key": signed(one, x=number),
        "uneven": signed(uneven, x=number),
        "complex": signed(complex_numbers, x=number),
        "take_complex": signed(same, x=of_any_shape(tf.complex64, "x")),
        "examples": signed(kinds, inputs=tf.TensorSpec([None], tf.string, name="inputs")),
        "mean": signed(mean, x=tf.TensorSpec([None], tf.float32, name="x")),
    }  # fmt: skip
    tf.saved_model.save(module, folder, signatures)


def window(folder: str) -> None:
    class Window(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            tf.debugging.assert_greater_equal(tf.shape(x)[1], 3)
            # rows end at their first NaN; the answer is as wide as the longest of them
            widths = tf.reduce_sum(tf.cast(tf.math.is_finite(x), tf.int32), axis=1)
            return {"width": widths, "kept": x[:, : tf.reduce_max(widths)]}

    module = Window()
    tf.saved_model.save(module, folder, {"serving_default": module.serve})


KINDS = {
    "half_plus_two": half_plus_two,
    "half_plus_two_tf2": half_plus_two_tf2,
    "half_plus_three": half_plus_three,
    "digits": digits,
    "tensors": tensors,
    "window": window,
}
