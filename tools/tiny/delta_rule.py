"""The gated delta rule of flash-linear-attention as a training kernel for transformers' Qwen3.5.

Import this module before `transformers`' Qwen3.5 classes.  Three things differ from plain fla:
- With Triton 3.4 to 3.7.0 on Hopper its gated `chunk_bwd_dqkwg` is miscompiled and refuses to run (fla issue 640): a
  PyTorch version of that one step takes its place.
- q and k are normalised in PyTorch, because fla's own normalisation recompiles for every batch shape.
- Autotuning tries a few configurations of each kernel instead of all: for a run of minutes, compiling is the cost.
`install` checks the gradients against autograd through transformers' reference.
"""

import importlib

import torch
import torch.nn.functional as F

TRIED_CONFIGURATIONS = 4


def trim_autotuning():
    try:
        from triton.runtime.autotuner import Autotuner
    except ImportError:
        return
    original = Autotuner.__init__

    def trimmed(self, fn, arg_names, configs, *arguments, **options):
        stride = max(1, len(configs) // TRIED_CONFIGURATIONS)
        original(self, fn, arg_names, configs[::stride], *arguments, **options)

    Autotuner.__init__ = trimmed


trim_autotuning()


def chunk_bwd_dqkwg(q, k, v, do, h, dh, w, g, dv, scale, chunk_size, **_):
    """Gradients of q, k, w and the cumulative log2-decay g inside each chunk; T is a multiple of `chunk_size`.

    q, k, w: [B, T, H, K]; v, do, dv: [B, T, H, V]; g: [B, T, H]; h, dh: [B, T / chunk_size, H, K, V].
    """
    def chunks(x):
        return x.unflatten(1, (-1, chunk_size)).transpose(2, 3)

    def rows(x, like):
        return x.transpose(2, 3).flatten(1, 2).to(like.dtype).contiguous()

    h, dh = h.to(q.dtype), dh.to(q.dtype)
    Q, K, V, dO, dV, G = (chunks(x) for x in (q, k, v, do, dv.to(q.dtype), g))
    last = G[..., -1]
    dQ = (dO @ h.mT).float() * (G.exp2() * scale)[..., None]
    dK = (V @ dh.mT).float() * (last[..., None] - G).exp2()[..., None]
    dW = -(dV @ h.mT)
    d_last = (h.float() * dh.float()).sum((-1, -2)) * last.exp2() + (dK * K.float()).sum((-1, -2))
    above = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=q.device).triu(1)
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(above, float("-inf")).exp2()
    dS = ((dO @ V.mT).float() * decay * scale).to(q.dtype)
    dQ = dQ + (dS @ K).float()
    dK = dK + (dS.mT @ Q).float()
    dG = (dQ * Q.float()).sum(-1) - (dK * K.float()).sum(-1)
    dG[..., -1] += d_last
    return rows(dQ, q), rows(dK, k), rows(dW, w), rows(dG, g)


def gradients(function, inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    q, k, v, g, beta = leaves
    out, _ = function(q, k, v, g=g, beta=beta.sigmoid(), use_qk_l2norm_in_kernel=True)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).sin().view_as(out)
    (out.float() * weight).sum().backward()
    return [leaf.grad.float() for leaf in leaves]


def check(kernel, reference, batch=4, length=192, heads=8, width=128):
    """Every gradient within 3 % (rms) of the float32 reference."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, length, heads, width, device="cuda") for _ in range(3))
    g = -torch.rand(batch, length, heads, device="cuda")
    beta = torch.randn(batch, length, heads, device="cuda")
    wanted = gradients(reference, (q, k, v, g, beta))
    found = gradients(kernel, (q.bfloat16(), k.bfloat16(), v.bfloat16(), g, beta.bfloat16()))
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted)]
    print("delta rule gradients, relative error:", " ".join(f"{name} {e:.4f}" for name, e in zip("q k v g beta".split(), errors)), flush=True)
    assert max(errors) < 0.03


def unit_rows(x):
    """Each row divided by its length: x / sqrt(sum(x^2) + 1e-6)."""
    width = x.shape[-1]
    weight = torch.full((width,), width ** -0.5, dtype=x.dtype, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, (width,), weight, eps=1e-6 / width)


def install(modeling):
    """Puts fla's kernel into the Qwen3.5 classes when the package is there; returns whether it is."""
    try:
        chunk = importlib.import_module("fla.ops.gated_delta_rule.chunk")
    except ImportError:
        return False
    chunk.chunk_bwd_dqkwg = chunk_bwd_dqkwg

    def delta_rule(query, key, value, g, beta, **_):
        return chunk.chunk_gated_delta_rule(unit_rows(query), unit_rows(key), value, g=g, beta=beta)

    check(delta_rule, modeling.torch_chunk_gated_delta_rule.__wrapped__)
    modeling.torch_chunk_gated_delta_rule = delta_rule
    return True
