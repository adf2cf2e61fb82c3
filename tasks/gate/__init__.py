"""The data gate: what lies in `data/raw`, what it is worth, and whether it may be trained on."""
