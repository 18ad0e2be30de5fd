"""Which classes of torchvision, timm and transformers hold a plan: `sslprune.apply_plan` on an instance of each.

    python scripts/apply_plan_classes.py resnet18 vgg11_bn vit_b_16     # names of the coverage list
    python scripts/apply_plan_classes.py --all

Of each class and each kind a third of the groups of every exact axis go, in a plan of its own. The plan is applied to
another instance with the same weights, and what that computes is compared with the masked model. "held" is equal to
1e-4 (relative); otherwise it says what `apply_plan`, or the class's own code, has against it.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

import sslprune
from scripts.architectures import BUILDERS
from sslprune.errors import SslpruneError, first_line
from sslprune.removal.verify import relative_difference

KINDS = ("filters", "neurons", "hidden", "heads", "layers")
TOLERANCE = 1e-4


def verdict(dense: nn.Module, program: sslprune.Program, axes: list[sslprune.Axis], args: tuple[object, ...]) -> str:
    """What becomes of a plan that takes a third of ``axes``."""
    masked = copy.deepcopy(dense)
    for axis in axes:
        sslprune.zero_groups(masked, axis, range(max(1, axis.size // 3) if axis.size > 1 else 1))
    try:
        held = sslprune.apply_plan(copy.deepcopy(masked), sslprune.make_plan(masked, program, axes))
        apart = relative_difference(masked, held.eval(), args, {})
    except SslpruneError as error:
        return first_line(error)
    except Exception as error:  # whatever a class's own code raises
        return f"its own code: {first_line(error)}"
    return "held" if apart <= TOLERANCE else f"differs by {apart:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    for name in BUILDERS if options.all else options.names:
        torch.manual_seed(0)
        try:
            model, args = BUILDERS[name]()
            program = sslprune.trace(model.eval(), args)
            found = [axis for axis in sslprune.find_axes(program) if axis.exact]
        except Exception as error:  # a row, whatever it is
            print(f"| {name} | | {first_line(error)} |", flush=True)
            continue
        for kind in KINDS:
            axes = [axis for axis in found if axis.kind == kind]
            if kind == "layers":
                axes = axes[1::3]
            if axes:
                print(f"| {name} | {kind} | {verdict(model, program, axes, args)} |", flush=True)


if __name__ == "__main__":
    main()
