"""Files of others: model folders, GGUF, tokenizers and PEFT adapters."""
