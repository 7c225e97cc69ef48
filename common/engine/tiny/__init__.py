"""The built-in backbone: its files, and the script that made them."""
