"""From text to token ids and back: tokenizers, detokenizing, chat templates. Knows no engine."""
