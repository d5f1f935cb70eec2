"""The fields of config.json that change no output, whatever the network.

Programs that train, convert and serve models leave fields of their own in the
config. Those are listed here that neither the attention, the MLPs, the norms
nor the logits of transformers' own networks depend on. A field that only some
network ignores belongs to its family.
"""

# Names, versions and origin.
_ORIGIN = (
    '_class_name', '_commit_hash', '_diffusers_version', '_from_model_config',
    '_name_or_path', '_original_model_name', 'architectures', 'author',
    'auto_map', 'base_model', 'base_model_name', 'base_model_name_or_path',
    'custom_pipelines', 'datasets', 'description', 'finetuned_from', 'language',
    'library_name', 'license', 'license_link', 'license_name', 'model_creator',
    'model_name', 'model_type', 'name', 'name_or_path', 'pipeline_tag',
    'source', 'tags', 'transformers.js_config', 'transformers_version',
    'unsloth_fixed', 'unsloth_version', 'version')

# What a call of transformers returns, and in which way it is computed.
_COMPUTATION = (
    '_attn_implementation', '_attn_implementation_autoset',
    '_attn_implementation_internal', '_flash_attn_2_enabled',
    'attn_implementation', 'bf16', 'chunk_size_feed_forward',
    'deterministic_flash_attn', 'dtype', 'flash_attention', 'fp16', 'fp32',
    'fused_bias_fc', 'fused_cross_entropy', 'fuse_cross_entropy', 'fuse_norm',
    'fused_dropout_add_ln', 'fused_mlp', 'gradient_checkpointing',
    'gradient_checkpointing_kwargs', 'keys_to_ignore_at_inference',
    'logits_to_keep', 'low_cpu_mem_usage', 'num_logits_to_keep',
    'output_attentions', 'output_hidden_states', 'output_past',
    'output_router_logits', 'pretraining_tp', 'return_dict',
    'tensor_parallel_degree', 'torch_dtype', 'torchscript', 'use_bfloat16',
    'use_cache', 'use_cce', 'use_fast_kernels', 'use_flash_attention',
    'use_flash_attention_2', 'use_flash_attn', 'use_flash_attn_2',
    'use_fused_rms_norm', 'use_fused_rope', 'use_fused_swiglu',
    'use_liger_kernel', 'use_return_dict', 'use_sdpa', 'xla_device')

# Training: how parameters begin, what drops out, what the loss adds.
_TRAINING = (
    '_num_labels', 'attention_dropout', 'attention_probs_dropout_prob',
    'attn_dropout', 'attn_pdrop', 'classifier_dropout',
    'classifier_dropout_prob', 'dropout', 'embd_dropout', 'embd_pdrop',
    'embedding_dropout', 'finetuning_task', 'hidden_dropout',
    'hidden_dropout_prob', 'id2label', 'ignore_index', 'init_device',
    'init_method', 'init_std', 'initializer_factor', 'initializer_range',
    'label2id', 'label_smoothing', 'layerdrop', 'mlp_dropout',
    'neftune_noise_alpha', 'num_labels', 'pad_vocab_size_multiple',
    'problem_type', 'resid_dropout', 'resid_pdrop', 'residual_dropout',
    'router_aux_loss_coef', 'router_jitter_noise', 'router_z_loss_coef',
    'task_specific_params', 'z_loss', 'z_loss_weight')

# The tokenizer, special tokens, and how long texts may be. What positions a
# network embeds is said by other fields.
_TEXT = (
    'begin_suppress_tokens', 'bos_token', 'bos_token_id', 'cls_token_id',
    'context_length', 'decoder_start_token_id', 'eos_token', 'eos_token_id',
    'eos_token_ids', 'mask_token_id', 'max_seq_len', 'max_seq_length',
    'max_sequence_length', 'model_max_length', 'pad_token', 'pad_token_id',
    'padding_idx', 'padding_side', 'seq_len', 'seq_length', 'sep_token_id',
    'tokenizer_class', 'tokenizer_model_max_length', 'tokenizer_name',
    'unk_token', 'unk_token_id', 'vocab_file')

# Generation, which older configs hold too.
_GENERATION = (
    'bad_words_ids', 'cache_implementation', 'diversity_penalty', 'do_sample',
    'early_stopping', 'encoder_no_repeat_ngram_size', 'epsilon_cutoff',
    'eta_cutoff', 'exponential_decay_length_penalty', 'forced_bos_token_id',
    'forced_eos_token_id', 'is_decoder', 'length_penalty', 'max_length',
    'max_new_tokens', 'min_length', 'min_new_tokens', 'no_repeat_ngram_size',
    'num_beam_groups', 'num_beams', 'num_return_sequences', 'output_scores',
    'penalty_alpha', 'prefix', 'remove_invalid_values', 'repetition_penalty',
    'return_dict_in_generate', 'suppress_tokens', 'temperature', 'top_k',
    'top_p', 'typical_p')

NAMES = frozenset((*_ORIGIN, *_COMPUTATION, *_TRAINING, *_TEXT, *_GENERATION))
