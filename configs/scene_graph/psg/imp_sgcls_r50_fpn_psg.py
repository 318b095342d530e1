_base_ = ['./imp_predcls_r50_fpn_psg.py']
model = dict(protocol='sgcls')
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
