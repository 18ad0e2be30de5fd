"""The graph of a ``.pt2`` is JSON whose text torch turns into Python: each piece is held to what an export writes.

Sizes go through ``sympy.sympify`` and guards through ``exec``; names are written into the source of ``forward``;
targets are looked up from ``torch`` on, which leads to ``torch.os.system``; specs of nested inputs import modules.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch._export.serde import schema
from torch._export.serde.serialize import _bytes_to_dataclass
from torch._export.serde.union import _Union


class Refused(Exception):
    """Something in a ``.pt2`` that could run code; its text names it."""


Rule = Callable[[str], None]

SAFE = re.compile(r"[^\"'`\\()\[\]{}\x00-\x1f\x7f]*")  # nothing in it ends a string or calls anything
ON_SIZES = re.compile(  # what computes with sizes, and what holds a part of the graph
    r"math\.(trunc|ceil|floor)|torch\._?sym_\w+|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|"
    r"truediv|and_|or_|not_|lshift|rshift|getitem)|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|"
    r"map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
OPERATOR = re.compile(r"torch\.ops\.[A-Za-z_]\w*\.[A-Za-z_]\w*\.\w+")
FUNCTIONS = re.compile(  # of sizes, as sympy prints them and as torch adds to it
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|And|Or|Not|Equality|Unequality|Eq|Ne|"
    "GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|Piecewise|ExprCondPair|FloorDiv|ModularIndexing|Where|"
    "PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|"
    "IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
GUARDS = re.compile(r"max|min|abs|math\.(floor|ceil|trunc|isnan)|cast_symbool_to_symint_guardless")
MEASURES = frozenset(("size", "stride", "storage_offset"))  # of an input, in a guard
ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.expr_context, ast.keyword, ast.Load,
)  # fmt: skip


def check_graph(text: bytes) -> None:
    """Raise Refused for a piece of the graph that is not what ``torch.export`` writes; other errors: it is damaged."""
    _check(_bytes_to_dataclass(schema.ExportedProgram, text), _safe)


def _check(value: Any, rule: Rule) -> None:
    """Hold every text in ``value`` to its field's rule, and to ``rule`` where no field says more."""
    if isinstance(value, str):
        rule(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _safe(key)
            _check(inner, rule)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner, rule)
    elif isinstance(value, _Union):
        _check(value.value, RULES.get(str(value.type), _safe))
    elif is_dataclass(value):
        if isinstance(value, schema.CustomObjArgument):
            raise Refused(f"a custom object {str(value.class_fqn)[:60]!r}")
        if isinstance(value, schema.Graph):  # a constant input stands in a guard, between quotes
            _check([given.value for given in value.inputs], _safe)
        name = type(value).__name__
        for field in fields(value):
            rule = RULES.get(f"{name}.{field.name}", _safe)
            _check(getattr(value, field.name), rule)


def _safe(text: str) -> None:
    if not SAFE.fullmatch(text):
        raise Refused(f"a name {text[:60]!r}")


def _free(text: str) -> None:
    """Text that torch keeps, and never reads as code: where an operation came from, an operator's own words."""


def _name(text: str) -> None:
    if text and (not text.isidentifier() or keyword.iskeyword(text)):
        raise Refused(f"a name {text[:60]!r}")


def _target(text: str) -> None:
    """An operator of a registered library that touches no file, or arithmetic on sizes."""
    if ON_SIZES.fullmatch(text):
        return
    if not OPERATOR.fullmatch(text):
        raise Refused(f"an operator {text[:60]!r}")
    found: Any = torch.ops
    for part in text.split(".")[2:]:
        found = getattr(found, part, None)
    if found is None:
        raise ValueError(f"no imported library has its operator {text[:60]!r}")
    if not isinstance(found, torch._ops.OpOverload) or any(
        re.search("file|path", argument.name) and "str" in str(argument.type) for argument in found._schema.arguments
    ):
        raise Refused(f"an operator {text[:60]!r}")


def _size(text: str) -> None:
    """Arithmetic of symbols, as sympy prints it: "Mul(Integer(2), Symbol('s0', integer=True))"."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and FUNCTIONS.fullmatch(node.func.id)
        if not (called or isinstance(node, ARITHMETIC) or _plain(node) or _symbol(node)):
            raise Refused(f"a size {text[:60]!r}")


def _guard(text: str) -> None:
    """A comparison of the inputs' sizes, as torch prints it: "L['x'].size()[0] <= 8"."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        called = isinstance(node, ast.Call) and (GUARDS.fullmatch(ast.unparse(node.func)) or _measured(node.func))
        known = isinstance(node, ARITHMETIC) or _plain(node) or _symbol(node)
        if not (
            called or known or _measured(node) or isinstance(node, ast.Subscript) or GUARDS.fullmatch(ast.unparse(node))
        ):
            raise Refused(f"a guard {text[:60]!r}")


def _plain(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and (
        isinstance(node.value, bool | int | float)
        or (isinstance(node.value, str) and re.fullmatch(r"[\w.+-]*", node.value) is not None)
    )


def _symbol(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and not node.id.startswith("__")


def _measured(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in MEASURES


def _outputs(text: str) -> None:
    """The nesting of what ``forward`` returns."""
    _check_spec(json.loads(text)[1])


def _inputs(text: str) -> None:
    """The nesting of (args, kwargs); the keys of the second become the names of arguments."""
    spec = json.loads(text)[1]
    _check_spec(spec)
    if len(spec["children_spec"]) == 2:
        keys = json.loads(spec["children_spec"][1]["context"] or "[]")
        for key in keys if isinstance(keys, list) else ():
            _name(str(key))


def _check_spec(spec: dict[str, Any]) -> None:
    kind, context = spec["type"], spec["context"]
    if kind == "collections.defaultdict" or not isinstance(kind, str | None):
        raise Refused(f"a nested value of {str(kind)[:60]!r}")
    if kind is not None:
        _check_context(context)
    for child in spec["children_spec"]:
        _check_spec(child)


def _check_context(context: Any) -> None:
    """What a container keeps beside its values, JSON within JSON: keys, never the name of a module to import."""
    if isinstance(context, str):
        try:
            inner = json.loads(context)
        except ValueError:
            _safe(context)
        else:
            _check_context(inner) if not isinstance(inner, str) else _safe(inner)
    elif isinstance(context, dict):
        if "__enum__" in context:
            raise Refused(f"a key of an imported type {str(context.get('fqn'))[:60]!r}")
        _check_context([*context, *context.values()])
    elif isinstance(context, list):
        for inner in context:
            _check_context(inner)


RULES: dict[str, Rule] = {
    "Node.target": _target,
    "Node.name": _name,
    "Node.metadata": _free,
    "GraphModule.metadata": _free,
    "TensorArgument.name": _name,
    "TokenArgument.name": _name,
    "GraphArgument.name": _name,
    "InputToConstantInputSpec.name": _name,
    "ModuleCallSignature.forward_arg_names": _name,
    "ModuleCallSignature.in_spec": _inputs,
    "ModuleCallSignature.out_spec": _outputs,
    "SymExpr.expr_str": _size,
    "ExportedProgram.guards_code": _guard,
    "as_name": _name,
    "as_operator": _target,
    "as_string": _free,  # an operator's own: printed as repr has it
    "as_strings": _free,
}
