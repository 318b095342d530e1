_base_ = ['../_base_/shapescenes_sgdet.py', '../_base_/transformer_tiny.py']
model = dict(relation_head=dict(context=_base_.transformer))
