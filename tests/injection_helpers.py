"""Random adapters of every kind, and what each means: formulas written apart from the code under test, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainers.formats import safetensors_io

RANK, ALPHA = 4, 2.0


def computes_in_half() -> bool:
    """Whether this torch multiplies float16 on a CPU at all (2.1 does not)."""
    try:
        nn.Linear(2, 2).half()(torch.ones(1, 2).half())
    except RuntimeError:
        return False
    return True


NEEDS_HALF = pytest.mark.skipif(not computes_in_half(), reason="this torch does not compute in float16 on a CPU")


def _r(*shape: int, size: float = 0.3) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) * size


def _lora(shape):
    out, inp, *k = shape
    return {"lora_down": _r(RANK, inp, *k), "lora_up": _r(out, RANK, *[1] * len(k)), "alpha": torch.tensor(ALPHA)}


def _tucker(shape):
    out, inp, *k = shape
    return {
        "lora_down": _r(RANK, inp, 1, 1),
        "lora_mid": _r(RANK, RANK, *k),
        "lora_up": _r(out, RANK, 1, 1),
        "alpha": torch.tensor(ALPHA),
    }


def _loha(shape, rank=RANK):
    out, inp, *k = shape
    size = inp * (k[0] * k[1] if k else 1)
    halves = {f"hada_w{i}_{h}": _r(*s) for i in (1, 2) for h, s in (("a", (out, rank)), ("b", (rank, size)))}
    return {**halves, "alpha": torch.tensor(ALPHA)}


def _loha_tucker(shape):
    out, inp, *k = shape
    halves = {f"hada_w{i}_{h}": _r(RANK, n) for i in (1, 2) for h, n in (("a", out), ("b", inp))}
    cores = {f"hada_t{i}": _r(RANK, RANK, *k) for i in (1, 2)}
    return {**halves, **cores, "alpha": torch.tensor(ALPHA)}


def _lokr(shape):
    out, inp, *k = shape
    return {"lokr_w1": _r(4, 4), "lokr_w2": _r(out // 4, inp // 4, *k), "alpha": torch.tensor(ALPHA)}


def _lokr_factored(shape):
    out, inp, *k = shape
    size = inp // 4 * (k[0] * k[1] if k else 1)
    first = {"lokr_w1_a": _r(4, 2), "lokr_w1_b": _r(2, 4)}
    return {**first, "lokr_w2_a": _r(out // 4, 2), "lokr_w2_b": _r(2, size), "alpha": torch.tensor(ALPHA)}


def _lokr_tucker(shape):
    out, inp, *k = shape
    second = {"lokr_t2": _r(2, 2, *k), "lokr_w2_a": _r(2, out // 4), "lokr_w2_b": _r(2, inp // 4)}
    return {"lokr_w1": _r(4, 4), **second, "alpha": torch.tensor(ALPHA)}


def _dora_out(shape):
    return {**_lora(shape), "dora_scale": _r(shape[0], *[1] * (len(shape) - 1)).abs() + 1}


def _dora_in(shape):
    return {**_lora(shape), "dora_scale": _r(1, shape[1], *[1] * (len(shape) - 2)).abs() + 1}


def _doha(shape):
    return {**_loha(shape), "dora_scale": _r(shape[0], *[1] * (len(shape) - 1)).abs() + 1}


def _oft(shape):
    return {"oft_blocks": _r(shape[0] // 4, 4, 4), "alpha": torch.tensor(0.02)}


def _oft_rescaled(shape):
    out, _, *k = shape
    return {"oft_blocks": _r(out // 4, 4, 4), "rescale": _r(out, 1, *[1] * len(k)) + 1, "alpha": torch.tensor(0.0)}


def _boft(shape):
    out, _, *k = shape
    return {"oft_blocks": _r(3, out // 4, 4, 4), "rescale": _r(out, 1, *[1] * len(k)) + 1, "alpha": torch.tensor(0.0)}


def _ia3(on_input):
    def make(shape):
        channels = shape[1 if on_input else 0]
        conv = (1, channels, 1, 1) if len(shape) == 4 else (channels,)
        return {"weight": _r(*conv), "on_input": torch.tensor(int(on_input))}

    return make


def _glora(shape):
    out, inp, *k = shape
    ones = [1] * len(k)
    a = {"a1": _r(inp, RANK, *ones), "a2": _r(RANK, inp, *ones)}
    return {**a, "b1": _r(out, RANK, *ones), "b2": _r(RANK, inp, *k), "alpha": torch.tensor(ALPHA)}


def _full(shape):
    return {"diff": _r(*shape, size=0.05), "diff_b": _r(shape[0])}


def _norm(shape):
    return {"w_norm": _r(*shape), "b_norm": _r(*shape)}


BOTH = ("linear", "conv1x1", "conv3x3")
MAKERS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "lora": (_lora, BOTH),
    "tucker": (_tucker, ("conv3x3",)),
    "loha": (_loha, BOTH),
    "loha, large rank": (lambda shape: _loha(shape, 12), BOTH),
    "loha tucker": (_loha_tucker, ("conv3x3",)),
    "lokr": (_lokr, BOTH),
    "lokr factored": (_lokr_factored, BOTH),
    "lokr tucker": (_lokr_tucker, ("conv3x3",)),
    "dora out": (_dora_out, BOTH),
    "dora in": (_dora_in, BOTH),
    "doha": (_doha, BOTH),
    "oft": (_oft, BOTH),
    "oft rescaled": (_oft_rescaled, BOTH),
    "boft": (_boft, BOTH),
    "ia3 out": (_ia3(False), BOTH),
    "ia3 in": (_ia3(True), BOTH),
    "glora": (_glora, BOTH),
    "full": (_full, BOTH),
    "norm": (_norm, ("layer_norm", "group_norm")),
}
CASES = [(kind, where) for kind, (_, places) in MAKERS.items() for where in places]


def make_params(kind: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random float64 parameters of a kind for a weight of this shape."""
    torch.manual_seed(seed)
    return MAKERS[kind][0](shape)


def make_layer(where: str, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A layer and an input for it."""
    torch.manual_seed(seed)
    layers = {
        "linear": lambda: nn.Linear(32, 48),
        "conv1x1": lambda: nn.Conv2d(32, 48, 1),
        "conv3x3": lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1),
        "layer_norm": lambda: nn.LayerNorm(32),
        "group_norm": lambda: nn.GroupNorm(4, 32),
    }
    layer = layers[where]().to(dtype).requires_grad_(False)
    if "norm" in where:
        layer.weight.data.normal_(1, 0.2)
        layer.bias.data.normal_()
    shape = (3, 7, 32) if where in ("linear", "layer_norm") else (3, 32, 9, 9)
    return layer, torch.randn(shape, dtype=torch.float64).to(dtype)


# --- reference: the changed weight and bias, entry by entry where that is readable


def _kron(a: Tensor, b: Tensor) -> Tensor:
    out = torch.zeros(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1], *b.shape[2:], dtype=a.dtype)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i * b.shape[0] : (i + 1) * b.shape[0], j * b.shape[1] : (j + 1) * b.shape[1]] = a[i, j] * b
    return out


def _core(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_ij t[i, j] a[i, out] b[j, in]"""
    return sum(
        t[i, j] * torch.outer(a[i], b[j])[:, :, None, None] for i in range(t.shape[0]) for j in range(t.shape[1])
    )


def _rotation(blocks: Tensor, alpha: float, out: int) -> Tensor:
    q = blocks - blocks.transpose(-1, -2)
    bound, length = alpha * out, float(q.norm())
    if bound > 0 and length > bound:
        q = q * bound / length
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    return (eye + q) @ torch.linalg.inv(eye - q)


def _butterfly_matrix(stage: Tensor, index: int) -> Tensor:
    """One stage of BOFT as a whole matrix: block d mixes channels that lie 2^index * b/2 apart."""
    n, b, _ = stage.shape
    size, stride = n * b, 2**index * (b // 2)
    order = torch.arange(size).reshape(-1, 2, stride).transpose(1, 2).reshape(-1)
    permuted = torch.block_diag(*stage)
    out = torch.zeros(size, size, dtype=stage.dtype)
    out[order[:, None], order[None, :]] = permuted
    return out


def delta(params: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """`(dW, db)` at weight 1, in float64."""
    p = {name: value.double() for name, value in params.items()}
    shape, out = tuple(weight.shape), weight.shape[0]
    bias = None
    if "lora_down" in p:
        rank = p["lora_down"].shape[0]
        if "lora_mid" in p:
            change = _core(p["lora_mid"], p["lora_up"].flatten(1).T, p["lora_down"].flatten(1))
        else:
            change = (p["lora_up"].flatten(1) @ p["lora_down"].flatten(1)).reshape(shape)
        change = change * float(p.get("alpha", torch.tensor(rank))) / rank
    elif "hada_w1_a" in p:
        halves = []
        for i in (1, 2):
            a, b = p[f"hada_w{i}_a"], p[f"hada_w{i}_b"]
            halves.append(_core(p[f"hada_t{i}"], a, b) if f"hada_t{i}" in p else (a @ b).reshape(shape))
        change = halves[0] * halves[1] * float(p["alpha"]) / p["hada_w1_b"].shape[0]
    elif "lokr_w2" in p or "lokr_w2_a" in p:
        w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
        scale = 1.0
        if "lokr_w2" in p:
            w2 = p["lokr_w2"]
        elif "lokr_t2" in p:
            w2, scale = _core(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"]), float(p["alpha"]) / 2
        else:
            w2 = (p["lokr_w2_a"] @ p["lokr_w2_b"]).reshape(out // 4, shape[1] // 4, *shape[2:])
            scale = float(p["alpha"]) / 2
        change = _kron(w1, w2) * scale
    elif "oft_blocks" in p:
        r = _rotation(p["oft_blocks"], float(p["alpha"]), out)
        if r.dim() == 3:
            turn = torch.block_diag(*r).T
        else:
            turn = torch.eye(out, dtype=torch.float64)
            for index, stage in enumerate(r):
                turn = _butterfly_matrix(stage, index) @ turn
        turned = (turn @ weight.flatten(1)).reshape(shape)
        change = turned * p.get("rescale", torch.ones(1, dtype=torch.float64)) - weight
    elif "on_input" in p:
        axis = 1 if int(p["on_input"]) else 0
        factor = p["weight"].reshape([-1 if a == axis else 1 for a in range(weight.dim())])
        change = weight * factor
    elif "a1" in p:
        a = p["a1"].flatten(1) @ p["a2"].flatten(1)
        b = (p["b1"].flatten(1) @ p["b2"].flatten(1)).reshape(shape)
        change = (torch.einsum("oi...,ij->oj...", weight, a) + b) * float(p["alpha"]) / RANK
    elif "w_norm" in p:
        change, bias = p["w_norm"], p["b_norm"]
    else:
        change, bias = p["diff"], p["diff_b"]
    if "dora_scale" in p:
        axis = 1 if p["dora_scale"].shape[0] == 1 else 0
        merged = weight + change
        others = [a for a in range(weight.dim()) if a != axis]
        change = merged / merged.pow(2).sum(others, keepdim=True).sqrt() * p["dora_scale"] - weight
    return change, bias


def with_delta(layer: nn.Module, x: Tensor, changes: list[tuple[float, Tensor, Tensor | None]]) -> Tensor:
    """The layer's output with `sum s (dW, db)` merged, in float64."""
    import copy

    merged = copy.deepcopy(layer).double()
    for s, change, bias in changes:
        merged.weight.data += s * change
        if bias is not None:
            merged.bias.data += s * bias
    return merged(x.double())


# --- files


def kohya_keys(name: str, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of one site under the names kohya and LyCORIS give them in a file."""
    dotted = {"lora_down", "lora_up", "lora_mid", "a1", "a2", "b1", "b2", "bm"}
    return {f"{name}.{part}.weight" if part in dotted else f"{name}.{part}": value for part, value in params.items()}


def write_adapter(
    path: Path, sites: dict[str, dict[str, Tensor]], dtype: torch.dtype = torch.float32, metadata: dict | None = None
) -> Path:
    """Writes an adapter file in kohya's naming from `{site name: params}`."""
    tensors = {}
    for name, params in sites.items():
        for key, value in kohya_keys(name, params).items():
            tensors[key] = value.to(dtype).contiguous() if value.is_floating_point() else value
    safetensors_io.save(path, tensors, metadata or {})
    return path
