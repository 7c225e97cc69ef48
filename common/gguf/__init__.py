"""GGUF files, as llama.cpp reads them, turned into folders in Hugging Face format.

`header` reads what a file says of itself, `model` and `tokens` turn that into a
configuration and a tokenizer, `convert` writes the folder. `write` goes the other way, for
models and adapters. What would be left out, guessed or replaced by a default is refused.
Imports: none of the rooms.
"""
