"""The core transformer and its Hugging Face folder format."""
