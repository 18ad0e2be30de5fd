"""A .pt2 file cannot run code, whichever command reads it; those that we write hold no pickle."""

from __future__ import annotations

import ast
import copy
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from typer.testing import CliRunner

import sslprune
from sslprune.bench import bench_files
from sslprune.bench.footprint import footprint
from sslprune.cli import app
from sslprune.errors import CheckpointError, RecipeError, SslpruneError
from sslprune.export.program import save_program
from sslprune.models.build import build_model, load_program
from sslprune.models.pt2 import read_program
from sslprune.recipe import ModelSection

WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
SAMPLES, GRAPH = "data/sample_inputs/model.pt", "models/model.json"
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
Records = dict[str, bytes]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


class Marks:
    """Unpickled, it makes the folder ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_program(Small(), (torch.randn(2, 3),), tmp_path_factory.mktemp("good") / "good.pt2")


def records_of(path: Path) -> Records:
    archive = torch._C.PyTorchFileReader(str(path))
    return {name: archive.get_record(name) for name in archive.get_all_records()}


def crafted(source: Path, target: Path, change: Callable[[Records], None]) -> Path:
    """``source`` with other records."""
    records = {n: c for n, c in records_of(source).items() if n != "byteorder" and not n.startswith(".data/")}
    change(records)
    writer = torch._C.PyTorchFileWriter(str(target))
    writer.set_min_version(6)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return target


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_graph(records: Records, change: Callable[[dict[str, Any]], None]) -> None:
    graph = json.loads(records[GRAPH])
    change(graph)
    records[GRAPH] = json.dumps(graph).encode()


def in_table(records: Records, table: str, entries: dict[str, Any]) -> None:
    values = json.loads(records[table])
    values["config"].update(entries)
    records[table] = json.dumps(values).encode()


def signature_of(graph: dict[str, Any]) -> Any:
    return next(e["signature"] for e in graph["graph_module"]["module_call_graph"] if e["signature"])


def payload(record: str) -> dict[str, Any]:
    return {"path_name": record, "is_param": False, "use_pickle": True, "tensor_meta": None}


def opaque_object(records: Records, marker: Path) -> None:
    in_table(records, CONSTANTS, {"evil": payload("opaque_obj_0")})
    records["data/constants/opaque_obj_0"] = pickle.dumps(Marks(marker))


def custom_object(records: Records, marker: Path) -> None:
    in_table(records, CONSTANTS, {"evil": payload("custom_obj_0")})
    records["data/constants/custom_obj_0"] = pickle.dumps(Marks(marker))


def pickled_constant(records: Records, marker: Path) -> None:
    in_table(records, CONSTANTS, {"evil": payload("tensor_0")})
    records["data/constants/tensor_0"] = pickled(Marks(marker))


def pickled_weight(records: Records, marker: Path) -> None:
    weight = json.loads(records[WEIGHTS])["config"]["linear.weight"]
    in_table(records, WEIGHTS, {"linear.weight": {**weight, "use_pickle": True}})
    records[f"data/weights/{weight['path_name']}"] = pickled(Marks(marker))


def sample_inputs(records: Records, marker: Path) -> None:
    records[SAMPLES] = pickled(((Marks(marker),), {}))


def older_constants(records: Records, marker: Path) -> None:
    records["data/constants/model.pt"] = pickled({"evil": Marks(marker)})


def compiled(records: Records, marker: Path) -> None:
    records["data/aotinductor/model/evil.so"] = b"\x7fELF"


def size(records: Records, marker: Path) -> None:
    def change(graph: dict[str, Any]) -> None:
        rows = graph["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]
        rows["expr_str"] = f"__import__('os').mkdir('{marker}') or {rows['expr_str']}"

    in_graph(records, change)


def guard(records: Records, marker: Path) -> None:
    in_graph(
        records, lambda graph: graph.update(guards_code=[f"__import__('os').mkdir('{marker}') is L['x'].size()[0]"])
    )


def imported_type(records: Records, marker: Path) -> None:
    context = {"default_factory_module": "evil", "default_factory_name": "int", "dict_context": ["y"]}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": [LEAF]}
    in_graph(records, lambda graph: signature_of(graph).update(out_spec=json.dumps([1, spec])))


def imported_key(records: Records, marker: Path) -> None:
    keys = json.dumps([{"__enum__": True, "fqn": "evil:Key", "name": "key"}])
    spec = {"type": "builtins.dict", "context": keys, "children_spec": [LEAF]}
    in_graph(records, lambda graph: signature_of(graph).update(out_spec=json.dumps([1, spec])))


def called(records: Records, target: str, inputs: list[dict[str, Any]]) -> None:
    """One more operation in the graph, whose output is the program's second."""

    def change(program: dict[str, Any]) -> None:
        module = program["graph_module"]
        graph, output = module["graph"], {"as_tensor": {"name": "evil"}}
        node = copy.deepcopy(graph["nodes"][0]) | {"target": target, "inputs": inputs, "name": "evil"}
        graph["nodes"].insert(0, node | {"outputs": [output]})
        graph["tensor_values"]["evil"] = graph["tensor_values"]["p_linear_bias"]
        graph["outputs"].append(output)
        module["signature"]["output_specs"].append({"user_output": {"arg": output}})
        spec = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF, LEAF]}
        signature_of(program).update(out_spec=json.dumps([1, spec]))

    in_graph(records, change)


def writes_a_file(records: Records, marker: Path) -> None:
    values = {"filename": {"as_string": str(marker)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    inputs = [{"name": name, "arg": value, "kind": 1} for name, value in values.items()]
    called(records, "torch.ops.aten.from_file.default", inputs)


def system_call(records: Records, marker: Path) -> None:
    called(records, "torch.os.mkdir", [{"name": "", "arg": {"as_string": str(marker)}, "kind": 1}])


def named(records: Records, old: str, new: str) -> None:
    records[GRAPH] = records[GRAPH].replace(json.dumps(old).encode(), json.dumps(new).encode())


def node_name(records: Records, marker: Path) -> None:
    named(records, "relu", f"relu = __import__('os').mkdir('{marker}') #")


def parameter_name(records: Records, marker: Path) -> None:
    new = f'", __import__("os").mkdir("{marker}")) #'
    named(records, "linear.weight", new)
    in_table(records, WEIGHTS, {new: json.loads(records[WEIGHTS])["config"]["linear.weight"]})


def argument_name(records: Records, marker: Path) -> None:
    in_graph(
        records,
        lambda graph: signature_of(graph).update(forward_arg_names=[f"x=__import__('os').mkdir('{marker}')"]),
    )


RUN_BY_TORCH = (  # by torch.export.load, .module() or a call, as of torch 2.13
    opaque_object, pickled_constant, pickled_weight, sample_inputs, older_constants, size, imported_type, imported_key,
    writes_a_file,
)  # fmt: skip
OTHERS = (custom_object, compiled, guard, system_call, node_name, parameter_name, argument_name)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there if code has run; the module ``evil`` makes it when it is imported."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\nint = int\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path / "marker"


@pytest.mark.parametrize("change", [*RUN_BY_TORCH, *OTHERS], ids=lambda change: change.__name__)
def test_a_crafted_file_is_refused_in_one_line(
    change: Callable[[Records, Path], None], good: Path, tmp_path: Path, marker: Path
) -> None:
    path = crafted(good, tmp_path / "crafted.pt2", lambda records: change(records, marker))
    with pytest.raises(CheckpointError, match=r"crafted.pt2: holds .* could run code") as caught:
        read_program(path)
    assert not marker.exists() and "\n" not in str(caught.value)
    if change in RUN_BY_TORCH:  # the test could fail
        script = f"import sys, torch; sys.path.insert(0, {str(tmp_path)!r})\n"
        script += f"torch.export.load({str(path)!r}).module()(torch.randn(5, 3))"
        subprocess.run([sys.executable, "-c", script], capture_output=True)
        assert marker.exists()


@pytest.mark.parametrize("change", [opaque_object, sample_inputs], ids=lambda change: change.__name__)
def test_every_reader_refuses(
    change: Callable[[Records, Path], None], good: Path, tmp_path: Path, marker: Path
) -> None:
    run = tmp_path / "run"
    (run / "repacked").mkdir(parents=True)
    path = crafted(good, run / "repacked/model.pt2", lambda records: change(records, marker))
    for read in (load_program, sslprune.load, lambda file: bench_files([good, file])):
        with pytest.raises(SslpruneError, match="could run code"):
            read(str(path))
    assert footprint(path, {"x": np.zeros((1, 3), np.float32)}) is None
    with pytest.raises(SslpruneError, match="could run code"):
        sslprune.load(run)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f'model.factory = "{path}"\ndata.factory = "sslprune.data:digits"\nprune = [{{ kind = "neurons" }}]\n'
        'budget.macs = 0.5\nschedule = { sparse = "1it", heal = "1it" }\n'
    )
    for words in (["inspect", recipe], ["run", recipe, "--run", tmp_path / "new"], ["bench", good, path]):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 1 and "could run code" in result.stderr.splitlines()[-1]
    assert not marker.exists() and not (tmp_path / "new").exists()


def test_a_program_takes_no_arguments(good: Path) -> None:
    section = ModelSection(factory=str(good), arguments={"depth": 3})
    with pytest.raises(RecipeError, match=r"model.arguments: .*good.pt2 is an exported program, .* got depth"):
        build_model(section)


def test_only_one_function_reads_pt2() -> None:
    package = Path(sslprune.__file__).parent
    for path in package.rglob("*.py"):
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert "torch.export.load" not in names, path
        loads = "load_pt2" in path.read_text() and path.name != "pt2.py"
        assert not loads, path


def test_what_we_write_holds_no_pickle_and_opens_without_us(good: Path, tmp_path: Path) -> None:
    records = records_of(good)
    assert records[SAMPLES] == b""
    assert all(
        p["use_pickle"] is False for t in (WEIGHTS, CONSTANTS) for p in json.loads(records[t])["config"].values()
    )
    assert not [name for name, content in records.items() if re.match(rb"\x80.c|PK", content[:3])]
    x = torch.randn(5, 3)
    assert torch.equal(torch.export.load(good).module()(x), read_program(good)[0].module()(x))


def test_the_same_module_gives_the_same_file(good: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    again = save_program(Small(), (torch.randn(2, 3),), tmp_path / "good.pt2")
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (good, again))
    assert one == other


class Honest(nn.Module):
    """Open sizes in arithmetic, nested outputs, a guard, a submodule of an odd name, an operator with words."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": nn.Linear(4, 4)})

    def forward(self, x: Tensor, y: dict[str, Tensor], *, scale: float = 2.0) -> dict[str, Any]:
        torch._check(x.shape[0] > 0, lambda: 'it\'s "empty"')
        with torch.no_grad():
            part = self.parts["a-b"](x)
        half = x[:, : x.shape[1] // 2]
        return {"out-1": (part, [torch.einsum("ij,kj->ik", x, y["q-1"])]), "half": half * scale, "rows": x.shape[0] * 2}


def test_files_of_others_are_read(tmp_path: Path) -> None:
    rows = Dim("rows", min=2, max=64)
    for name, module, args, shapes in (
        ("honest", Honest(), (torch.randn(2, 4), {"q-1": torch.randn(3, 4)}), ({0: rows}, {"q-1": {0: Dim.AUTO}})),
        ("lstm", nn.LSTM(4, 5, 2, batch_first=True), (torch.randn(2, 6, 4),), ({0: Dim.AUTO, 1: Dim.AUTO},)),
    ):
        path = tmp_path / f"{name}.pt2"
        torch.export.save(torch.export.export(module.eval(), args, dynamic_shapes=shapes), path)
        assert records_of(path)[SAMPLES]  # theirs hold sample inputs, which are tensors
        found, expected = read_program(path)[0].module()(*args), module(*args)
        assert str(found) == str(expected)


def test_damaged_files(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    for name, content in (("empty", b""), ("half", whole[: len(whole) // 2]), ("text", b"hello")):
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}.pt2: not a readable .pt2 file") as caught:
            read_program(path)
        assert "\n" not in str(caught.value)
    path = crafted(good, tmp_path / "graph.pt2", lambda records: records.update({GRAPH: b"{}"}))
    with pytest.raises(CheckpointError, match=r"not a readable .pt2 file"):
        read_program(path)
