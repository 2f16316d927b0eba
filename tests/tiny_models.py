"""Real networks that are small enough to be made for a test."""


def save_tiny_qwen3(folder):
    "A Qwen3 of random weights (hidden 64, 2 layers, seed 0) saved into a folder; the network."
    import torch
    import transformers
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=320, max_position_embeddings=1024, initializer_range=0.3, tie_word_embeddings=False,
        eos_token_id=0, bos_token_id=0)
    net = transformers.Qwen3ForCausalLM(config).eval()
    net.save_pretrained(folder)
    return net


def train_tokenizer(folder):
    "A byte-level tokenizer without a chat template, saved into a folder."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>", "<think>", "</think>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(["A man walks into a shop. The baker gives him bread."] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>").save_pretrained(folder)
