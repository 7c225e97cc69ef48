"""The built-in backbone: its files. `benchmarks/pretrain.py` made them."""
