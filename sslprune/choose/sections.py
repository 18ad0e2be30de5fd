"""Which axes a recipe's ``[[prune]]`` sections mean."""

from __future__ import annotations

from collections.abc import Sequence

from sslprune.choose.ties import inner_branches, ties_of
from sslprune.errors import RecipeError
from sslprune.kinds.table import KINDS, kind_of
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis


def select(axes: Sequence[Axis], sections: Sequence[PruneSection]) -> list[Axis]:
    """The axes that the sections choose, in the order of ``axes``; see ``select_with_sections``."""
    return [axis for axis, _ in select_with_sections(axes, sections)]


def select_with_sections(axes: Sequence[Axis], sections: Sequence[PruneSection]) -> list[tuple[Axis, PruneSection]]:
    """The chosen axes, each with the first section that chooses it.

    Frozen axes are left out, and inexact ones unless their section allows them; of tied blocks what lies inside another
    branch. Raises RecipeError for a section whose kind or patterns match nothing, or whose tie cannot be.
    """
    chosen: dict[int, PruneSection] = {}
    for number, section in enumerate(sections):
        matching = _matching(axes, section, f"prune.{number}")
        new = [i for i, axis in enumerate(axes) if axis in matching and i not in chosen]
        if section.tie == "block":
            inner = inner_branches([axes[i] for i in new])
            new = [i for at, i in enumerate(new) if at not in inner]
        ties_of([axes[i] for i in new], section, f"prune.{number}")
        chosen |= dict.fromkeys(new, section)
    return [(axes[i], chosen[i]) for i in sorted(chosen)]


def named_by(axes: Sequence[Axis], section: PruneSection) -> list[Axis]:
    """The axes that a section names, whether they can go or not."""
    return [axis for axis in axes if axis.kind == section.kind and section.names(axis.name)]


def _matching(axes: Sequence[Axis], section: PruneSection, field: str) -> list[Axis]:
    of_kind = [axis for axis in axes if axis.kind == section.kind]
    if section.shape is not None and not (of_kind and kind_of(of_kind[0]).is_tiled):
        raise RecipeError(f'{field}.shape: groups of kind "{section.kind}" have none; it is for "blocks"')
    if not of_kind:
        kinds = ", ".join(sorted({axis.kind for axis in axes})) or "none"
        missing = KINDS[section.kind].missing if section.kind in KINDS else ""
        factored = next((axis.kind for axis in axes if kind_of(axis).factors), None)
        if factored is not None and section.kind in KINDS and KINDS[section.kind].is_inside:
            missing += f'; what kind "{factored}" makes two matrices of has none: leave it out there, with exclude'
        raise RecipeError(f'{field}.kind: no axis is of kind "{section.kind}"; the model has {kinds}{missing}')
    named = named_by(axes, section)
    if not named:
        names = ", ".join(axis.name for axis in of_kind[:6]) + (", ..." if len(of_kind) > 6 else "")
        raise RecipeError(f"{field}.include: {section.include} without {section.exclude} matches none of {names}")
    usable = [axis for axis in named if axis.prunable and (axis.exact or section.allow_inexact)]
    if not usable:
        reason = f"{named[0].name} is {'frozen' if named[0].frozen else 'inexact'}: {named[0].reason}"
        raise RecipeError(f"{field}: none of the {len(named)} axes can be removed ({reason}); see `sslprune inspect`")
    return usable


def check_counted(chosen: Sequence[tuple[Axis, PruneSection]], measure: str) -> None:
    """Raise RecipeError for groups that no budget counts, as what is zero of them stays in dense weights."""
    kept = next((section.kind for axis, section in chosen if kind_of(axis).is_tiled), None)
    if kept is not None:
        raise RecipeError(
            f'budget.{measure}: no budget counts the zeros of kind "{kept}", which stay in dense weights; give '
            "lasso.strength (as 1e-4) in place of [budget]"
        )
