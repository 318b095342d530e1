# The Transformer of the tiny models. A config with a relation head refers to it.
transformer = dict(
    type='TransformerContext',
    hidden_dim=128,
    num_layers=2,
    num_edge_layers=1,
    num_heads=4,
    ffn_dim=256,
    norm='pre',
    dropout=0.0,
)
