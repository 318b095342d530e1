_base_ = ['../_base_/shapescenes_sgcls.py', '../_base_/transformer_tiny.py']
model = dict(relation_head=dict(context=_base_.transformer))
