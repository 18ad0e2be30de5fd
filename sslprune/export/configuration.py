"""Which fields of a configuration say the sizes of a smaller model: found from the class, by building it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from typing import Any

import torch

from sslprune.errors import ExportError, few, first_line
from sslprune.export.padded import alike
from sslprune.export.renumber import Held

Shapes = Mapping[str, tuple[int, ...]]
Changes = dict[str, Any]  # of fields, by their names; a dot leads into a nested configuration
MOST_BUILT = 600  # configurations that are tried
MODELS = ("transformers.models.", "transformers.modeling_layers")  # where the classes of models are written


@dataclass
class Configurations:
    """Configurations of the class of ``model`` that differ from its own in some fields."""

    model: Any
    built: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # what the class said of a change, by the fields changed

    def made(self, changes: Changes) -> Any:
        """The configuration with ``changes``; raises whatever the class has against them."""
        config = self.model.config
        values, late = config.to_dict(), {}
        for path, value in changes.items():
            *outer, last = path.split(".")
            table = values
            for part in outer:
                table = table[part]
            if last in table or outer:
                table[last] = value
            else:
                late[last] = value  # what the class asks for and its configuration does not write
        made = type(config).from_dict(values, **late)
        for name, value in late.items():
            setattr(made, name, value)
        made._attn_implementation = config._attn_implementation
        return made

    def shapes(self, changes: Changes) -> dict[str, tuple[int, ...]] | None:
        """The shape of each tensor of the class with ``changes``; None where it refuses them."""
        self.built += 1
        try:
            with torch.device("meta"):
                model = type(self.model)(self.made(changes))
        except Exception as error:  # whatever a class, or the check of a configuration, raises
            self.refused[", ".join(changes)] = first_line(error)
            return None
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    @cached_property
    def asked(self) -> list[str]:
        """The fields that the class's own code reads while it is built, by their names in the configuration."""
        config = copy.deepcopy(self.model.config)
        names, here = dict[str, None](), type(self.model).__module__

        class Asked(type(config)):  # type: ignore[misc]
            def __getattribute__(self, name: str) -> Any:
                caller = str(sys._getframe(1).f_globals.get("__name__"))
                if not name.startswith("_") and (caller.startswith(MODELS) or caller == here):
                    names[type(config).attribute_map.get(name, name)] = None
                return super().__getattribute__(name)

        config.__class__ = Asked
        with torch.device("meta"):
            type(self.model)(config)
        return list(names)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Every whole number among the fields that the class reads, and in nested configurations."""
        nested = type(self.model.config).sub_configs
        found: dict[str, int] = {}

        def walk(table: Mapping[str, Any], prefix: str) -> None:
            for name, value in table.items():
                if isinstance(value, int) and not isinstance(value, bool) and (prefix or name in self.asked):
                    found[prefix + name] = value
                elif isinstance(value, dict) and (prefix or name in nested):
                    walk(value, f"{prefix}{name}.")

        walk(self.model.config.to_dict(), "")
        labels = getattr(self.model.config, "num_labels", None)
        return found | ({"num_labels": labels} if isinstance(labels, int) and "num_labels" in self.asked else {})

    @property
    def unsaid(self) -> list[str]:
        """The fields that the class reads and that have no value: it has a way of its own for them."""
        return [name for name in self.asked if getattr(self.model.config, name, None) is None]

    def listed(self, depth: str, before: int, left: Sequence[int]) -> Changes:
        """The lists with an entry for each of as many layers as ``depth`` says, with those of the layers ``left``."""
        config, found = self.model.config, {}
        for name, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == before and all(isinstance(i, int) for i in left):
                lengths = [len(getattr(type(config)(**{depth: count}), name, None) or ()) for count in (3, 5)]
                if lengths == [3, 5]:
                    found[name] = [value[i] for i in left]
        return found


def configurations(model: Any, held: Held) -> Iterator[tuple[Changes, Any]]:
    """Changes, and the configuration with them, by which the class of ``model`` has the tensors of ``held``.

    The fewest come first. Raises ExportError, naming layer and field, where there are none.
    """
    made = Configurations(model)
    depth = _depth(made, held)
    _check_alike(made, held)
    for changes in _widths(made, held, depth):
        yield changes, made.made(changes)


def _depth(made: Configurations, held: Held) -> Changes:
    """The fields that say how many layers are left, and the lists with an entry for each layer."""
    changes: Changes = {}
    for stack, left in held.kept.items():
        before = len(made.model.get_submodule(stack))
        for name, value in made.numbers.items():
            own = {name: len(left)} if value == before else {}
            if own and "." not in name:
                own |= made.listed(name, before, left)
            shapes = made.shapes(own) if own else None
            if shapes is not None and _length(shapes, stack) == len(left):
                changes |= own
                break
        else:
            raise ExportError(
                f"{stack}: {len(left)} of {before} are left, and no field of {type(made.model.config).__name__} says "
                'how many; let whole layers go, by tie = "block" in their [[prune]]'
            )
    return changes


def _length(shapes: Shapes, stack: str) -> int:
    return len({name.removeprefix(f"{stack}.").partition(".")[0] for name in shapes if name.startswith(f"{stack}.")})


def _check_alike(made: Configurations, held: Held) -> None:
    """Raise ExportError for layers that were alike and are of different sizes now."""
    for (_, _, before), (like, *names) in alike(made.model, held).items():
        for name, dim in product(names, range(len(before))):
            size, other = held.tensors[name].shape[dim], held.tensors[like].shape[dim]
            if size != other:
                fields = [field for field, value in made.numbers.items() if value == before[dim]]
                raise ExportError(
                    f"{held.before[name]}: {size} of {before[dim]} are left, of {held.before[like]} {other}; "
                    f"{type(made.model.config).__name__} has one number for all layers ({few(fields, 3) or 'none'}); "
                    'tie them, by tie = "layers" in their [[prune]], and train again, or fill up with zeros, by --pad'
                )


@dataclass(frozen=True)
class Option:
    """A field with another value; ``moves``: the tensors' dimensions that it changes alone, ``right`` those rightly."""

    name: str
    value: Any
    moves: frozenset[tuple[str, int]]
    right: frozenset[tuple[str, int]]


def _widths(made: Configurations, held: Held, depth: Changes) -> Iterator[Changes]:
    """Changes of sizes, on top of those of ``depth``, until the class has the shapes of ``held``."""
    wanted = {name: tuple(tensor.shape) for name, tensor in held.tensors.items()}
    whole = {new: tuple(made.model.state_dict()[old].shape) for new, old in held.before.items()}
    dense = made.shapes(depth)
    if dense is None:
        raise ExportError(f"{type(made.model).__name__} refuses {_said(depth)}: {made.refused[', '.join(depth)]}")
    missing = sorted(dense.keys() ^ wanted.keys())
    if missing:
        where = "is not in the repacked model" if missing[0] in dense else "has no place in the class"
        raise ExportError(f"{missing[0]}: {where}; {type(made.model).__name__} cannot be as the repacked model is")
    if dense == wanted:
        yield depth
    if any(len(wanted[name]) != len(whole[name]) for name in wanted):
        raise ExportError("a convolution's columns are gathered, which no configuration says; leave their kind out")
    apart = {(n, d) for n in wanted for d, size in enumerate(wanted[n]) if size != whole[n][d]}
    if dense == wanted and not apart:
        return  # no field has anything to say
    pairs = {(whole[n][d], wanted[n][d]) for n, d in apart}
    pinned = _pinned(made, depth, whole, {size for pair in pairs for size in pair})
    options = list(_options(made, {**depth, **pinned}, pinned, wanted, whole, apart, pairs))
    forced, loose = _forced(options, apart)
    closest: tuple[int, Changes, Shapes] = (len(apart) + 1, {}, dense)
    for more in _combinations(loose):
        chosen = {option.name: option.value for option in (*forced, *more)}
        for changes in ({**depth, **chosen}, {**depth, **pinned, **chosen})[: 1 + bool(pinned.keys() - chosen)]:
            shapes = made.shapes(changes) if made.built < MOST_BUILT else None
            if shapes == wanted:
                yield changes
            elif shapes is not None:
                wrong = sum(shapes[n][d] != size for n in wanted for d, size in enumerate(wanted[n]))
                closest = min(closest, (wrong, changes, shapes), key=lambda found: found[0])
    raise _not_held(made, wanted, whole, closest[1], closest[2], options)


def _pinned(made: Configurations, depth: Changes, whole: Shapes, sizes: set[int]) -> Changes:
    """What the class takes for the fields that are not said, as far as sizes depend on them: a head's width, say."""
    found: Changes = {}
    for name in made.unsaid:
        values = sizes | {size // n for size in sizes for n in made.numbers.values() if n > 1 and size % n == 0}
        shapes = {value: made.shapes({**depth, name: value}) for value in sorted(values)}
        same = [value for value, of in shapes.items() if of == whole]
        if len(same) == 1 and len(shapes) > 1:
            found[name] = same[0]
    made.refused.clear()
    return found


def _options(
    made: Configurations,
    base: Changes,
    pinned: Changes,
    wanted: Shapes,
    whole: Shapes,
    apart: set[tuple[str, int]],
    pairs: set[tuple[int, int]],
) -> Iterator[Option]:
    """Each field with each value that it could have now, and what that does to the shapes by itself."""
    for name, value in {**made.numbers, **pinned}.items():
        alone = {value * now // old for old, now in pairs if value * now % old == 0}
        for new in sorted((alone | _factors(value, pairs)) - {value, 0}):
            shapes = made.shapes({**base, name: new})
            moves = {
                (n, d)
                for n, shape in (shapes or {}).items()
                for d, size in enumerate(shape)
                if n in whole and len(shape) == len(whole[n]) and size != whole[n][d]
            }
            if shapes is not None and (shapes.keys() != whole.keys() or not moves <= apart):
                continue  # it changes what has stayed as it was
            if new not in alone and not moves:
                continue
            right = {(n, d) for n, d in moves if shapes is not None and shapes[n][d] == wanted[n][d]}
            yield Option(name, new, frozenset(moves), frozenset(right))


def _factors(value: int, pairs: set[tuple[int, int]]) -> set[int]:
    """What a field of ``value`` can be now where a size is its product with another field, and both went down."""
    products = [(old // value, now) for old, now in pairs if value > 1 and old % value == 0]
    return {new for other, now in products for new in range(1, value) if now % new == 0 and now // new <= other}


def _forced(options: Sequence[Option], apart: set[tuple[str, int]]) -> tuple[list[Option], list[Option]]:
    """What alone brings some dimension to its size, which no other field moves; and the rest."""
    forced: dict[str, Option] = {}
    for dim in sorted(apart):
        movers = [option for option in options if dim in option.moves]
        able = [option for option in movers if dim in option.right]
        if len({option.name for option in movers}) == 1 and len(able) == 1:
            forced[able[0].name] = able[0]
    return list(forced.values()), [option for option in options if option.name not in forced]


def _combinations(options: Sequence[Option]) -> Iterator[tuple[Option, ...]]:
    """Sets of options, one value a field: the fewest first, and of as many those that move more."""
    of_field: dict[str, list[Option]] = {}
    for option in sorted(options, key=lambda option: -len(option.right)):
        of_field.setdefault(option.name, []).append(option)
    for count in range(len(of_field) + 1):
        for names in combinations(of_field, count):
            yield from product(*(of_field[name] for name in names))


def _not_held(
    made: Configurations,
    wanted: Shapes,
    whole: Shapes,
    changes: Changes,
    shapes: Shapes,
    options: Sequence[Option],
) -> ExportError:
    """Which tensor does not fit, by the closest configuration, and what the class says of the fields that it needs."""
    name = next(n for n in wanted if shapes[n] != wanted[n])
    dim = next(d for d, size in enumerate(wanted[name]) if shapes[name][d] != size)
    fields = list(dict.fromkeys(option.name for option in options if (name, dim) in option.moves))
    refusals = [f"{names}: {said}" for names, said in made.refused.items() if "," not in names]
    config = type(made.model.config).__name__
    hold = f"{few(fields, 3)} of {config} cannot say it" if fields else f"no field of {config} says it"
    also = f" ({_said(changes)} says the rest)" if changes else ""
    why = f"; the class refuses {refusals[0]}" if refusals else ""
    return ExportError(
        f"{name}: {wanted[name][dim]} of {whole[name][dim]} are left in dimension {dim}, and {hold}{also}{why}; leave "
        "that axis out with exclude, or tie it with those of its size"
    )


def _said(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items())
