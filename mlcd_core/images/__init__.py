"""Images in, embeddings out: decoding, embedders, and the demo's digit scenes.

The embedders' modules are imported where they are built; ``digit_scenes`` and ``decode`` load no torch.
"""
