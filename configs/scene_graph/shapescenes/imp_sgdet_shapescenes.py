_base_ = '../_base_/shapescenes_sgdet.py'
model = dict(relation_head=dict(context=dict(type='IMPContext', hidden_dim=128)))
