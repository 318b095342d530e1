_base_ = ['./rnn_sgdet_mask2former_shapescenes.py']
model = dict(
    relation_head=dict(
        context=dict(
            _delete_=True,
            type='TransformerContext',
            hidden_dim=128,
            num_layers=2,
            num_edge_layers=1,
            num_heads=4,
            ffn_dim=256,
            norm='pre',
            dropout=0.0,
        )
    )
)
