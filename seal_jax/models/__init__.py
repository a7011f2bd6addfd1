"""The decoder, its weights and its tokenizer: from a name to a `LanguageModel`."""
