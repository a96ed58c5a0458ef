"""Activation quantisation inside a `transformers` model: what an FP8 engine does to the inputs of its FP8 linears.

The model's weights are the dequantised ones; each FP8 linear's input is replaced by its e4m3 code times its scale, one
scale per token and group of 128 elements.
"""

import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

GROUP = 128
FP8_MAX = 448.0


def fake_quantise(x):
    """e4m3 codes times scales, in the dtype of `x`; the arithmetic in between is float32."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    peak = groups.abs().amax(-1, keepdim=True).clamp_min(1e-10)
    scale = peak * torch.tensor(1.0 / FP8_MAX, dtype=torch.float32)
    codes = (groups * (FP8_MAX / peak)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return (codes.float() * scale).flatten(-2).to(x.dtype)


def quantised_experts(self, hidden_states, top_k_index, top_k_weights):
    """The routed experts with quantised inputs to both projections; the weighted parts are summed per token."""
    x = fake_quantise(hidden_states)
    parts = hidden_states.new_empty(*top_k_index.shape, hidden_states.shape[-1])
    for expert in range(self.num_experts):
        token, slot = (top_k_index == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
        y = F.linear(fake_quantise(self.act_fn(gate) * up), self.down_proj[expert])
        parts[token, slot] = y * top_k_weights[token, slot, None]
    return parts.sum(dim=1)


ALL_EXPERTS_FUNCTIONS.register("fakequant", quantised_experts)


def quantise_inputs(model, modules):
    """Installs the quantisation on `modules` (names from `checkpoint.quantised_modules`)."""
    for name in modules:
        module = model.get_submodule(name)
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (fake_quantise(inputs[0]), *inputs[1:]))
        else:
            assert name.endswith(".experts"), name
            model.config._experts_implementation = "fakequant"
