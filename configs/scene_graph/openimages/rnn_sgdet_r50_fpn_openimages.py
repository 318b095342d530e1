_base_ = ['./rnn_predcls_r50_fpn_openimages.py']
model = dict(protocol='sgdet')
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
