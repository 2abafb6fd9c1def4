"""Load, run and export Hugging Face models and tokenizers."""
