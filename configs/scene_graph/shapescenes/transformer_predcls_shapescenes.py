_base_ = [
    '../_base_/scene-graph-rcnn_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
model = dict(
    relation_head=dict(
        context=dict(
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
