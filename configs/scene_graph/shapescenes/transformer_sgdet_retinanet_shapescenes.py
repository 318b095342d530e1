_base_ = ['./rnn_sgdet_retinanet_shapescenes.py', '../_base_/transformer_tiny.py']
model = dict(relation_head=dict(context=dict(_base_.transformer, _delete_=True)))
