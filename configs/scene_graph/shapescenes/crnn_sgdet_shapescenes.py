_base_ = '../_base_/shapescenes_sgdet.py'
model = dict(
    relation_head=dict(
        context=dict(type='CRNNContext', cell='gru', hidden_dim=128, conv_channels=64)
    )
)
