"""Model shapes: the `config.json` of Qwen3.5 checkpoints, dense and MoE, in the nested form of the Qwen releases."""

VOCAB = 1024  # rows of the embedding, a multiple of 128; the last ones have no token
BASE_TOKENS = 960  # byte-level BPE entries, ids 0..959; the added tokens follow

# The added tokens of Qwen3.5 in its order, and whether each is "special" (dropped when decoding text for people).
ADDED_TOKENS = [
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
    ("<|object_ref_start|>", True), ("<|object_ref_end|>", True), ("<|box_start|>", True), ("<|box_end|>", True),
    ("<|quad_start|>", True), ("<|quad_end|>", True), ("<|vision_start|>", True), ("<|vision_end|>", True),
    ("<|vision_pad|>", True), ("<|image_pad|>", True), ("<|video_pad|>", True),
    ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", True), ("<|fim_middle|>", True), ("<|fim_suffix|>", True), ("<|fim_pad|>", True),
    ("<|repo_name|>", True), ("<|file_sep|>", True),
    ("<tool_response>", False), ("</tool_response>", False), ("<think>", False), ("</think>", False),
    ("<|audio_start|>", True), ("<|audio_end|>", True), ("<tts_pad>", True), ("<tts_text_bos>", True),
    ("<tts_text_eod>", True), ("<tts_text_bos_single>", True), ("<|audio_pad|>", True),
]
TOKEN_ID = {text: BASE_TOKENS + i for i, (text, _) in enumerate(ADDED_TOKENS)}
END_OF_TEXT, IM_END = TOKEN_ID["<|endoftext|>"], TOKEN_ID["<|im_end|>"]

# Module names that stay bf16 in an FP8 checkpoint, relative to a decoder layer.
UNQUANTISED_IN_EVERY_LAYER = ["input_layernorm", "post_attention_layernorm"]
UNQUANTISED_IN_MOE = ["mlp.gate", "mlp.shared_expert_gate"]
UNQUANTISED_IN_LINEAR = [f"linear_attn.{name}" for name in
                         ("A_log", "conv1d", "dt_bias", "in_proj_a", "in_proj_b", "in_proj_ba", "norm")]
UNQUANTISED_IN_FULL = ["self_attn.q_norm", "self_attn.k_norm"]


def modules_to_not_convert(layer_types, moe):
    names = ["lm_head", "model.language_model.embed_tokens", "model.language_model.norm"]
    for i, kind in enumerate(layer_types):
        inside = UNQUANTISED_IN_EVERY_LAYER + (UNQUANTISED_IN_MOE if moe else [])
        inside = inside + (UNQUANTISED_IN_LINEAR if kind == "linear_attention" else UNQUANTISED_IN_FULL)
        names += [f"model.language_model.layers.{i}.{name}" for name in inside]
    return names


def qwen_config(*, layers, hidden, heads, kv_heads, k_heads, v_heads, vocab, tied, fp8, mlp, end_of_text=None):
    """`mlp` is {"intermediate_size": n} for a dense model, or the four sizes of a MoE."""
    moe = "num_experts" in mlp
    family = "qwen3_5_moe" if moe else "qwen3_5"
    layer_types = ["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(layers)]
    text = {
        "model_type": f"{family}_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": end_of_text,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "layer_types": layer_types,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": k_heads,
        "linear_num_value_heads": v_heads,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 4096,
        **({"mlp_only_layers": []} if moe else {}),
        **mlp,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                            "mrope_section": [11, 11, 10], "mrope_interleaved": True},
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": vocab,
    }
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration" if moe else "Qwen3_5ForConditionalGeneration"],
        "model_type": family,
        "text_config": text,
        "tie_word_embeddings": tied,
    }
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": modules_to_not_convert(layer_types, moe),
        }
    return config


def moe(experts, top_k, intermediate, shared):
    return {"num_experts": experts, "num_experts_per_tok": top_k, "moe_intermediate_size": intermediate,
            "shared_expert_intermediate_size": shared, "router_aux_loss_coef": 0.001, "output_router_logits": False}


TINY = qwen_config(layers=8, hidden=256, heads=4, kv_heads=2, k_heads=4, v_heads=8, vocab=VOCAB, tied=True, fp8=True,
                   mlp=moe(4, 2, 128, 512), end_of_text=END_OF_TEXT)

RANDOM = {
    "dense_untied": qwen_config(layers=4, hidden=256, heads=4, kv_heads=2, k_heads=4, v_heads=8, vocab=512, tied=False,
                                fp8=True, mlp={"intermediate_size": 512}),
    "dense_tied": qwen_config(layers=4, hidden=384, heads=4, kv_heads=1, k_heads=4, v_heads=4, vocab=512, tied=True,
                              fp8=True, mlp={"intermediate_size": 1024}),
    "moe_wide_v": qwen_config(layers=4, hidden=256, heads=8, kv_heads=2, k_heads=4, v_heads=16, vocab=512, tied=False,
                              fp8=True, mlp=moe(8, 3, 256, 512)),
    "moe_bf16": qwen_config(layers=4, hidden=256, heads=4, kv_heads=2, k_heads=4, v_heads=8, vocab=512, tied=False,
                            fp8=False, mlp=moe(4, 2, 512, 512)),
}
