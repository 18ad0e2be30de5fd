"""Einstein sums: one rule for every contraction that is written with letters."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.atoms import Dim, fixed
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.inference import Inference, Rule
from sslprune.analysis.zeros import AnyOf, Keeps


def einsum(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Dimensions of one letter stay equal; letters that the result lacks are summed over."""
    tensors = list(a.tensors)
    inputs, _, result = a.equation.replace(" ", "").partition("->")
    terms = [_letters(term, len(g.dims(tensor))) for term, tensor in zip(inputs.split(","), tensors, strict=True)]
    if not result and "->" not in a.equation:
        counts = [letter for term in terms for letter in term]
        dots = sorted({letter for letter in counts if len(letter) > 1})
        result_letters = dots + sorted(x for x in set(counts) if counts.count(x) == 1 and len(x) == 1)
    else:
        result_letters = _letters(result, len(g.shape(node)))
    of: dict[str, Dim] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, dim in zip(term, g.dims(tensor), strict=True):
            if dim.size == 1:
                of.setdefault(letter, dim)
            elif letter in of and of[letter].size == dim.size:
                g.unify(of[letter], dim, node)
            else:
                of[letter] = Dim(dim.rows, dim.why)  # one tensor may stand twice, under different letters
    summed = [letter for letter in of if letter not in result_letters]
    along = {
        of[letter]: tuple(t for term, t in zip(terms, tensors, strict=True) if letter in term) for letter in summed
    }
    free = tuple(
        Keeps(tensor, tuple(dim for letter, dim in zip(term, g.dims(tensor), strict=True) if letter not in summed))
        for term, tensor in zip(terms, tensors, strict=True)
    )
    g.out(node, [of.get(letter, fixed(1)) for letter in result_letters], AnyOf(free))
    for term, tensor in zip(terms, tensors, strict=True):
        if tensor.op == "get_attr":
            for i, letter in enumerate(term):
                if letter in result_letters:
                    g.label(g.dims(tensor)[i], "neurons")
                    g.produces(tensor, i)
    if len(tensors) == 1:
        for dim, operands in along.items():
            g.sums(node, dim, AnyOf(tuple(Keeps(operand) for operand in operands)))
        return
    w = next((i for i, tensor in enumerate(tensors) if tensor.op == "get_attr"), len(tensors) - 1)
    others = {letter for i, term in enumerate(terms) if i != w for letter in term}
    made = [letter for letter in terms[w] if letter in result_letters and letter not in others]
    g.contracts(
        Contraction(
            node,
            tensors[w - 1],
            tensors[w],
            batched=tuple(dim for letter, dim in of.items() if letter in result_letters and letter not in made),
            made=tuple(of[letter] for letter in made),
            summed=along,
            makes=tuple(i for i, letter in enumerate(terms[w]) if letter in made),
            reads=tuple(i for i, letter in enumerate(terms[w]) if letter in summed),
            runs_as="MatMul" if tensors[w].op == "get_attr" else "MatMul2",
        )
    )


def _letters(term: str, rank: int) -> list[str]:
    """One name a dimension; an ellipsis stands for as many as are left, counted from the right."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    count = rank - len(before) - len(after)
    return [*before, *(f"...{i}" for i in range(count, 0, -1)), *after]


RULES: dict[str, Rule] = {"einsum": einsum}
