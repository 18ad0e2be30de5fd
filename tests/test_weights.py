"""An ONNX file that is put together from its parts says what onnx itself would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sslprune.export.session import open_session
from sslprune.export.weights import beside, embed


def written(path: Path, bodies: bool) -> onnx.ModelProto:
    """x @ weight + a constant of a branch's body where ``bodies``; its weights beside it, the small one within."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(40, 30)).astype(np.float32), np.arange(30, dtype=np.float32)
    inside = numpy_helper.from_array(random.normal(size=(300, 30)).astype(np.float32), "inside")
    branch = helper.make_graph(
        [helper.make_node("ReduceSum", ["inside"], ["sum"], keepdims=0)], "branch", [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])], [inside],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    if bodies:
        nodes[1].output[0] = "biased"
        nodes += [
            helper.make_node("If", ["yes"], ["more"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["biased", "more"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 30])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias"),
         numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"kept": "yes"})
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    onnx.save(model, str(path), save_as_external_data=True, location=beside(path).name, size_threshold=1000)
    return whole


@pytest.mark.parametrize("bodies", [False, True])
def test_weights_come_in_and_nothing_else_changes(tmp_path: Path, bodies: bool) -> None:
    path = tmp_path / "m.onnx"
    whole = written(path, bodies)
    assert beside(path).stat().st_size >= 4 * 40 * 30
    embed(path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    found = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(found, full_check=True)
    for model in (found, whole):  # the order of weights says nothing
        model.graph.initializer.sort(key=lambda weight: weight.name)
    for weight in (
        *found.graph.initializer,
        *(a.g.initializer[0] for n in found.graph.node for a in n.attribute if a.g.node),
    ):
        weight.ClearField("data_location")
    assert found.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert path.stat().st_size == pytest.approx(whole.ByteSize(), abs=64)
    x = np.ones((2, 40), np.float32)
    expected = open_session_of(whole, tmp_path).run(None, {"x": x})
    np.testing.assert_array_equal(open_session(path).run(None, {"x": x})[0], expected[0])


def open_session_of(model: onnx.ModelProto, folder: Path):
    onnx.save(model, str(folder / "whole.onnx"))
    return open_session(folder / "whole.onnx")
