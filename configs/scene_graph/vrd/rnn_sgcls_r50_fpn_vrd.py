_base_ = ['./rnn_predcls_r50_fpn_vrd.py']
model = dict(protocol='sgcls')
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
