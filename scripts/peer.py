"""Torch-Pruning 1.6.1 on the coverage list: does its pruned model compute what the masked model computes?

Used as its README has it: ``BasePruner`` at a ratio of 0.5, the layers that make the output ignored, the number of
heads named for the query, key and value layers, head sizes mended afterwards. Which groups go is drawn at random.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from scripts.architectures import BUILDERS
from scripts.coverage import TOLERANCE, Result, relative
from tests.laws import lively_, settle_

QUERY_KEY_VALUE = {
    "qkv", "query", "key", "value", "q", "k", "v", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin",
}  # fmt: skip
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
PRUNED_TYPES = (nn.Linear, nn.modules.conv._ConvNd, nn.LSTM)


def check_peer(name: str, seed: int = 0) -> dict[str, Any]:
    """The same row as ``coverage.check``, without the checks of files."""
    result = Result(name)
    torch.manual_seed(seed)
    model, args = BUILDERS[name]()
    lively_(model, seed).eval()
    try:
        import torch_pruning

        small = copy.deepcopy(model)
        started = time.perf_counter()
        pruner = torch_pruning.pruner.BasePruner(
            small,
            args[0] if len(args) == 1 else args,
            importance=torch_pruning.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=output_layers(small, args),
            num_heads=heads(small),
        )
        numbered_(small)
        pruner.step()
        result.seconds = time.perf_counter() - started
        result.left = size(small) / size(model)
        masked = masked_(model, small, args, seed)
        mend_heads_(small)
        result.masked = relative(masked, small, args)
    except Exception as error:  # a row of the table, whatever it is
        result.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return asdict(result)
    result.failure = "nothing removed" if result.left == 1 else "" if result.masked <= TOLERANCE else "masked differs"
    result.passed = not result.failure
    return asdict(result)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor.dtype == torch.float32}


def numbered_(model: nn.Module) -> None:
    """Replace every number by its place in its tensor, as bits: after the cut it says where each number came from."""
    for tensor in tensors(model).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.int32).view(torch.float32).reshape(tensor.shape)


def masked_(model: nn.Module, small: nn.Module, args: tuple[Any, ...], seed: int) -> nn.Module:
    """Set to zero, in place, what the numbered ``small`` has lost; then give ``small`` the numbers that it keeps."""
    originals = tensors(model)
    places = {name: tensor.data.contiguous().view(torch.int32).long() for name, tensor in tensors(small).items()}
    for name, place in places.items():
        kept = torch.zeros(originals[name].numel()).index_fill_(0, place.reshape(-1), 1)
        originals[name].data.mul_(kept.reshape(originals[name].shape))
    settle_(model, args, seed)
    for name, tensor in tensors(small).items():
        tensor.data = originals[name].data.reshape(-1)[places[name]]
    return model


def output_layers(model: nn.Module, args: tuple[Any, ...]) -> list[nn.Module]:
    """The layer that runs last, and any other whose result is one of the model's outputs."""
    ran: list[tuple[nn.Module, Any]] = []
    layers = [module for module in model.modules() if isinstance(module, PRUNED_TYPES)]
    hooks = [layer.register_forward_hook(lambda module, _, out: ran.append((module, out))) for layer in layers]
    with torch.no_grad():
        outputs = model(*args)
    for hook in hooks:
        hook.remove()
    made = {id(leaf) for leaf in torch.utils._pytree.tree_leaves(outputs)}
    return [module for i, (module, out) in enumerate(ran) if i == len(ran) - 1 or id(out) in made]


def heads(model: nn.Module) -> dict[nn.Module, int]:
    """The number of heads of every query, key and value layer that goes by one of the usual names."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        number = next((getattr(module, word) for word in HEADS if isinstance(getattr(module, word, None), int)), None)
        for name, child in module.named_children():
            if number and name in QUERY_KEY_VALUE and isinstance(child, nn.Linear):
                found[child] = number
    return found


def mend_heads_(model: nn.Module) -> None:
    """Set what attention modules remember about their width to what is left of it, as the peer's examples do."""
    for module in model.modules():
        number = next((getattr(module, word) for word in HEADS if isinstance(getattr(module, word, None), int)), None)
        layer = next((child for name, child in module.named_children() if name in QUERY_KEY_VALUE), None)
        if number and isinstance(layer, nn.Linear):
            width = layer.out_features // (3 if hasattr(module, "qkv") else 1)
            sizes = dict.fromkeys(("head_dim", "attention_head_size", "key_value_proj_dim"), width // number)
            sizes |= dict.fromkeys(("attn_dim", "all_head_size", "inner_dim", "embed_dim"), width)
            for word, value in sizes.items():
                if hasattr(module, word):
                    setattr(module, word, value)
